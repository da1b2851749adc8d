"""A share of the training data that is held out, written as `2%` where held-out data is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")


class _OrShare:
    """What the annotation says, or a share of the training data as `2%`. A union would name no place inside of it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def read(value: Any, inner: Callable[[Any], Any]) -> Any:
            return value if isinstance(value, str) and share_of(value) is not None else inner(value)

        def written(value: Any, inner: Callable[[Any], Any]) -> Any:
            return value if isinstance(value, str) else inner(value)

        told = core_schema.wrap_serializer_function_ser_schema(written)
        return core_schema.no_info_wrap_validator_function(read, handler(source), serialization=told)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        inner = handler(schema)
        return {"anyOf": [{"type": "string", "pattern": f"^{_PERCENT.pattern}$"}, *inner.pop("anyOf", [inner])]}


OrShare = _OrShare()
"""The last of a field's annotations: `2%` may stand in place of the value."""


def share_of(text: str) -> float | None:
    """The share of the training data that a text such as `2%` names; None for another text."""
    found = _PERCENT.fullmatch(text)
    return float(found[1]) / 100 if found else None


def check_share(text: str, share: float) -> None:
    if not 0 < share <= 0.5:
        raise ValueError(f"`valid: {text}` holds out what is not trained: write more than 0% and at most 50%")
