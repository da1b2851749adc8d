"""JSON values and their schemas: arguments of tool calls, and finals that a row has a schema for (Draft 2020-12, or the
draft that the schema names).

A schema comes from a user or a row and the value from a model, so neither may raise, reach for a network, or hang: one
deadline holds for a validation (schema_validator.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from counterpoint.data.harmony.schema_validator import (
    SECONDS,
    SchemaObject,
    TooLongError,
    deadline,
    limited,
    uncheckable,
)

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_LONG_NUMBER = re.compile(rb"[0-9]{19}")  # orjson makes a float of an integer beyond 64 bits


def object_of(text: bytes) -> tuple[dict[str, Any] | None, int, str]:
    """The JSON object that `text` holds, else None with the character where it goes wrong, and why."""
    value, at, why = value_of(text)
    if why or isinstance(value, dict):
        return value, at, why
    return None, 0, f"a JSON {_KINDS.get(type(value), 'value')}, not an object"


def value_of(text: bytes) -> tuple[Any, int, str]:
    """The JSON value that `text` holds and "", else None with the character where it goes wrong, and why."""
    try:
        value = orjson.loads(text)
        return _exactly(text, value) if _LONG_NUMBER.search(text) else value, 0, ""
    except orjson.JSONDecodeError as error:
        return None, error.pos, error.msg


class Verdict(NamedTuple):
    """Whether a value is valid for a schema, and what is wrong: with the value, or with the schema (`unknown`)."""

    kind: Literal["valid", "invalid", "unknown"]
    told: str = ""


def schema_fault(schema: Mapping[str, Any]) -> str | None:
    """Why values cannot be checked against `schema`; None where they can."""
    text = _written(schema)
    validator = text if isinstance(text, str) else _compiled(text)
    return validator if isinstance(validator, str) else None


def invalid(schema: Mapping[str, Any], value: Any) -> str | None:
    """What `schema` finds wrong with a JSON value, with its path; None where nothing, or where that cannot be known."""
    found = verdict(schema, value)
    return found.told if found.kind == "invalid" else None


def verdict(schema: Mapping[str, Any], value: Any) -> Verdict:
    """The nearest error with its path, and how many more there are. Never raises, and ends within the deadline."""
    text = _written(schema)
    if isinstance(text, str):
        return Verdict("unknown", text)
    surely_valid = _acceptor(text)
    if surely_valid is not None and surely_valid(value):
        return Verdict("valid")
    validator = _compiled(text)
    if isinstance(validator, str):
        return Verdict("unknown", validator)
    try:
        with deadline():
            errors = list(validator.iter_errors(value))
    except TooLongError:
        return Verdict("unknown", _TOO_LONG)
    except Exception as error:  # an unresolvable reference, a pattern that Python cannot read, recursion
        return Verdict("unknown", _reason(error))
    if not errors:
        return Verdict("valid")
    first = min(errors, key=lambda error: len(error.absolute_path))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Verdict("invalid", f"{first.json_path}: {first.message[:160]}{more}")


def _exactly(text: bytes, value: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return value


_KINDS = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


_TOO_LONG = f"checking it takes more than {SECONDS:g} s"


def _written(schema: Mapping[str, Any]) -> bytes | str:
    """The schema as text, or why it has none."""
    try:
        return orjson.dumps(dict(schema))
    except (TypeError, ValueError, RecursionError):
        pass
    try:  # integers of more than 64 bits are beyond orjson
        return json.dumps(dict(schema)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"the schema is not JSON ({error})"


@lru_cache(maxsize=1024)
def _compiled(schema_json: bytes) -> Validator | str:
    from jsonschema.exceptions import best_match
    from jsonschema.validators import Draft202012Validator, validator_for
    from jsonschema_specifications import REGISTRY
    from referencing import Registry

    if (fault := uncheckable(schema_json)) is not None:
        return fault
    try:
        schema = json.loads(schema_json, object_hook=SchemaObject)
        draft = limited(validator_for(schema, default=Draft202012Validator))
        with deadline():
            meta = limited(validator_for(draft.META_SCHEMA, default=Draft202012Validator))
            error = best_match(meta(draft.META_SCHEMA, registry=REGISTRY).iter_errors(schema))
        return draft(schema, registry=Registry()) if error is None else f"{error.json_path}: {error.message[:160]}"
    except TooLongError:
        return _TOO_LONG
    except Exception as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:160]}"


@lru_cache(maxsize=1024)
def _acceptor(schema_json: bytes) -> Callable[[Any], bool] | None:
    """A test that takes only what the schema surely takes, far faster than jsonschema; None where there is none.

    What it does not take goes to jsonschema, which alone reports what is wrong.
    """
    if isinstance(_compiled(schema_json), str):
        return None
    try:
        return _plain_acceptor(orjson.loads(schema_json))
    except RecursionError:
        return None


def _plain_acceptor(schema: Any) -> Callable[[Any], bool] | None:
    """For a schema of types, string enums, properties and items; None for any other."""
    if not isinstance(schema, dict) or not schema.keys() <= _PLAIN_KEYWORDS:
        return None
    types = _TYPES.get(schema.get("type")) if isinstance(schema.get("type"), str) else None
    if types is None:
        return None
    if (values := schema.get("enum")) is not None:
        allowed = frozenset(v for v in values if isinstance(v, str))
        return lambda value: type(value) is str and str in types and value in allowed
    if dict in types:
        return _object_acceptor(schema)
    if list in types and "items" in schema:
        item = _plain_acceptor(schema["items"])
        return None if item is None else lambda value: type(value) is list and all(map(item, value))
    return lambda value: type(value) in types


def _object_acceptor(schema: dict[str, Any]) -> Callable[[Any], bool] | None:
    properties = {name: _plain_acceptor(inner) for name, inner in schema.get("properties", {}).items()}
    required = frozenset(schema.get("required", ()))
    others = schema.get("additionalProperties", True)
    if None in properties.values() or not isinstance(others, bool):
        return None

    def accepts(value: Any) -> bool:
        if type(value) is not dict or not required <= value.keys():
            return False
        for name, inner in value.items():
            test = properties.get(name)
            if test is None:
                if not others:
                    return False
            elif not test(inner):
                return False
        return True

    return accepts


_TYPES: dict[Any, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_PLAIN_KEYWORDS = frozenset(
    {"type", "enum", "properties", "required", "additionalProperties", "items"}
    | {"title", "description", "default", "examples", "$comment", "$schema", "deprecated", "readOnly", "writeOnly"}
)
