"""The validators with a deadline judge and say what jsonschema's own do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator

from counterpoint.data.harmony import schema_validator
from counterpoint.data.harmony.schema_validator import SchemaObject, TooLongError, deadline, limited

SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, 1.5, "", "a", "ab", "b"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "ab", "b"]), inner),
    max_leaves=8,
)
TYPES = st.sampled_from(["object", "array", "string", "integer", "boolean", "null"])
PATTERNS = st.sampled_from(["a", "^b", "b$", "^a|^b$", "^$"])
SCHEMAS = st.recursive(
    st.booleans() | st.fixed_dictionaries({"type": TYPES}) | st.fixed_dictionaries({"pattern": PATTERNS}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from(["a", "ab"]), inner, max_size=2),
            "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
            "additionalProperties": inner,
            "items": inner,
            "uniqueItems": st.booleans(),
            "enum": st.lists(VALUES, min_size=1, max_size=3),
            "const": VALUES,
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
        },
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("draft", [Draft202012Validator, Draft7Validator], ids=["2020-12", "7"])
@settings(max_examples=300)
@given(schema=SCHEMAS, value=VALUES)
def test_it_finds_what_jsonschema_finds(draft: Any, schema: Any, value: Any) -> None:
    ours = json.loads(json.dumps(schema), object_hook=SchemaObject)
    found = [(error.json_path, str(error.validator)) for error in limited(draft)(ours).iter_errors(value)]
    assert sorted(found) == sorted(
        (error.json_path, str(error.validator)) for error in draft(schema).iter_errors(value)
    )


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"additionalProperties": False}, {"a": 1}),
        ({"additionalProperties": False}, {"a": 1, "b": 2}),
        ({"patternProperties": {"^a": {}}, "additionalProperties": False}, {"b": 1}),
        ({"patternProperties": {"^a": {}, "^b": {}}, "additionalProperties": False}, {"c": 1, "d": 1}),
        ({"uniqueItems": True}, [1, 1.0]),
        ({"enum": [True, "a"]}, 1),
        ({"const": {"a": [1]}}, {"a": [2]}),
    ],
)
def test_it_says_what_jsonschema_says(schema: Any, value: Any) -> None:
    (ours,), (theirs,) = (
        list(c(schema).iter_errors(value)) for c in (limited(Draft202012Validator), Draft202012Validator)
    )
    assert ours.message == theirs.message


def test_a_deadline_inside_another_does_not_add_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_validator, "SECONDS", 0.0)
    with deadline():
        monkeypatch.setattr(schema_validator, "SECONDS", 9.0)
        with deadline(), pytest.raises(TooLongError):
            list(limited(Draft202012Validator)({"type": "string"}).iter_errors(1))
    list(limited(Draft202012Validator)({"type": "string"}).iter_errors(1))
