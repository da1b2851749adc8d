"""Arguments of calls: JSON objects, and schemas that may be broken, hostile, or reach for a network."""

from __future__ import annotations

import socket
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from counterpoint.data.harmony.argument_schema import _acceptor, invalid, object_of, schema_fault

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_an_object_is_read_with_exact_numbers() -> None:
    assert object_of(b' {"a": 123456789012345678901234567890, "b": [1.5, null]} ')[0] == {
        "a": 123456789012345678901234567890,
        "b": [1.5, None],
    }


@pytest.mark.parametrize(
    ("text", "character", "why"),
    [
        (b"", 0, "zero-length"),
        (b"[]", 0, "a JSON array"),
        (b'"x"', 0, "a JSON string"),
        (b"1", 0, "a JSON number"),
        (b"true", 0, "a JSON boolean"),
        (b"null", 0, "a JSON null"),
        (b'{"a": NaN}', 6, "expected"),
        (b'{"a": 1,}', 8, "trailing"),
        (b'{"a": "\\ud800"}', 7, "surrogate"),
        (b'{"a": "\xff"}', 0, "UTF-8"),
    ],
)
def test_what_is_no_object_says_where_and_why(text: bytes, character: int, why: str) -> None:
    value, at, reason = object_of(text)
    assert value is None
    assert abs(at - character) <= 2
    assert why.lower() in reason.lower()


def test_the_nearest_error_is_told_with_its_path() -> None:
    assert invalid(OBJECT, {"a": 1}) is None
    assert invalid(OBJECT, {}) == "$: 'a' is a required property"
    assert invalid(OBJECT, {"a": "1"}) == "$.a: '1' is not of type 'integer'"
    nested = {"type": "object", "properties": {"x": {"type": "array", "items": OBJECT}}, "additionalProperties": False}
    assert invalid(nested, {"x": [{"a": 1}, {"a": None}], "y": 1}) == (
        "$: Additional properties are not allowed ('y' was unexpected) (and 1 more)"
    )


def test_integers_of_any_size_in_schemas_are_exact() -> None:
    large = 98765432109876543210123
    schema = {"properties": {"a": {"type": "integer", "maximum": large}}}
    assert schema_fault(schema) is None
    assert invalid(schema, {"a": large}) is None
    assert invalid(schema, {"a": large + 1}) == f"$.a: {large + 1} is greater than the maximum of {large}"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "dict"},
        {"type": 5},
        {"properties": []},
        {"required": "a"},
        {"$ref": 7},
        {"a": object()},
        {"pattern": "("},
    ],
)
def test_a_broken_schema_is_told_and_judges_nothing(schema: dict[str, Any]) -> None:
    assert invalid(schema, {"a": 1}) is None
    if schema != {"pattern": "("}:
        assert schema_fault(schema)
    assert schema_fault(OBJECT) is None


def test_references_are_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a schema reached for the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    remote = {"properties": {"a": {"$ref": "http://example.com/schema.json"}}}
    assert invalid(remote, {"a": 1}) is None
    local = {"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    assert invalid(local, {"a": "x"}) == "$.a: 'x' is not of type 'integer'"
    endless = {"properties": {"a": {"$ref": "#/properties/a"}}}
    assert invalid(endless, {"a": 1}) is None


def test_a_pattern_that_would_run_for_ever_is_given_up() -> None:
    schema = {"properties": {"a": {"type": "string", "pattern": "^(a|aa)+$"}}}
    assert invalid(schema, {"a": "aaa"}) is None
    assert invalid(schema, {"a": "b"}) == "$.a: 'b' does not match '^(a|aa)+$'"
    assert invalid(schema, {"a": "a" * 200 + "!"}) is None


def test_arguments_beyond_the_recursion_limit_are_judged() -> None:
    schema = {"$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}
    value: dict[str, Any] = {}
    for _ in range(600):
        value = {"n": value}
    assert invalid(schema, value) is None


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 1.5]) | st.sampled_from(["", "a"])
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from("abc"), v, max_size=3), max_leaves=8
)
types = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"])
schemas = st.recursive(
    st.builds(lambda t: {"type": t}, types)
    | st.lists(st.sampled_from(["a", "b", "", 1, None]), min_size=1, unique=True).map(
        lambda v: {"type": "string", "enum": v}
    )
    | st.sampled_from([{"enum": ["a", 1]}, {"type": "string", "minLength": 1}, {"type": ["string", "null"]}, {}]),
    lambda inner: (
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3)},
            optional={
                "required": st.lists(st.sampled_from("abc"), unique=True, max_size=2),
                "additionalProperties": st.booleans() | inner,
                "description": st.just("x"),
            },
        )
        | st.fixed_dictionaries({"type": st.just("array")}, optional={"items": inner, "minItems": st.just(1)})
    ),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None)
@given(schemas, values)
def test_the_fast_test_takes_nothing_that_jsonschema_refuses(schema: dict[str, Any], value: Any) -> None:
    accepts = _acceptor(orjson.dumps(schema))
    truth = Draft202012Validator(schema).is_valid(value)
    if accepts is not None and accepts(value):
        assert truth
    if isinstance(value, dict):
        assert (invalid(schema, value) is None) == truth


def test_the_fast_test_serves_ordinary_tools() -> None:
    tool = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where"},
            "unit": {"type": "string", "enum": ["c", "f"]},
            "days": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["city"],
        "additionalProperties": False,
    }
    accepts = _acceptor(orjson.dumps(tool))
    assert accepts is not None
    assert accepts({"city": "Rome", "unit": "c", "days": [1, 2]})
    assert not accepts({"city": "Rome", "unit": "k"})
    assert not accepts({"city": "Rome", "days": [True]})
