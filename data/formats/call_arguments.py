"""Arguments of a tool call, as the text of one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.formats.fields import describe
from counterpoint.data.rows.strict_json import dumps
from counterpoint.data.rows.tables import Padded

_FIX = "write a JSON object as a string"


def arguments_text(value: Any, field: str, options: ConversionSettings, notice: Callable[[str, str, str], None]) -> str:
    """Text of the arguments: a string that holds a JSON object stays as it is, byte for byte.

    Double-encoded and object arguments follow `options`; absent and empty ones become `{}`. Raises RowError.
    """
    if isinstance(value, dict):
        if options.object_arguments == "quarantine":
            raise RowError("object_arguments", field, "is an object", _FIX)
        notice("object_arguments", field, "arguments given as an object were written as JSON text")
        return dumps(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        notice("empty_arguments", field, "no arguments: written as {}")
        return "{}"
    if not isinstance(value, str):
        raise RowError("wrong_type", field, f"is {describe(value)}", _FIX)
    decoded = _decode(value, field)
    if isinstance(decoded, dict):
        return value
    if isinstance(decoded, str):
        return _decode_again(decoded, field, options, notice)
    raise RowError("arguments_not_object", field, f"holds {describe(decoded)}, not a JSON object", _FIX)


def with_required_nulls(arguments: Padded, schema: Any) -> Padded:
    """Arguments that Arrow gave, with the nulls that their schema requires written again in their place."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return arguments
    required = schema.get("required")
    needed = [
        name
        for name in (required if isinstance(required, list) else ())
        if isinstance(name, str) and name not in arguments and _allows_null(properties.get(name))
    ]
    whole = Padded()
    for name in dict.fromkeys((*arguments.names, *arguments, *needed)):
        if name in arguments:
            value = arguments[name]
            whole[name] = with_required_nulls(value, properties.get(name)) if isinstance(value, Padded) else value
        elif name in needed:
            whole[name] = None
    return whole


def _allows_null(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    kind = schema.get("type")
    if kind == "null" or (isinstance(kind, list) and "null" in kind) or schema.get("nullable") is True:
        return True
    options = schema.get("anyOf") or schema.get("oneOf")
    values = schema.get("enum")
    return (isinstance(options, list) and any(map(_allows_null, options))) or (
        isinstance(values, list) and None in values
    )


def _decode_again(text: str, field: str, options: ConversionSettings, notice: Callable[[str, str, str], None]) -> str:
    if options.double_encoded_arguments == "quarantine":
        raise RowError("double_encoded_arguments", field, "encoded as JSON twice", _FIX)
    try:
        inner = orjson.loads(text)
    except orjson.JSONDecodeError:
        inner = None
    if not isinstance(inner, dict):
        raise RowError("arguments_not_object", field, "holds a string, not a JSON object", _FIX)
    notice("double_encoded_arguments", field, "arguments encoded as JSON twice were decoded once")
    return text


def _decode(text: str, field: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "infinity" in str(error):  # JSON as such, of which the text alone is kept
            return json.loads(text)
        raise RowError("arguments_not_json", field, f"not JSON ({error})", _FIX) from None
