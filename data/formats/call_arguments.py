"""Arguments of a tool call, as the text of one JSON object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.formats.fields import describe
from counterpoint.data.rows.strict_json import dumps

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
        raise RowError("arguments_not_json", field, f"not JSON ({error})", _FIX) from None
