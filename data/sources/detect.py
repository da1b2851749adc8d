"""Which format a row has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.sources.chat import THINKING_KEYS
from counterpoint.data.sources.fields import describe
from counterpoint.data.sources.openai import MESSAGE_KEYS

FORMATS = ("openai", "messages")


def detect(value: Any) -> str:
    """Name of the format of a row. Raises RowError where no format fits."""
    if not isinstance(value, Mapping):
        raise RowError("unknown_format", "row", f"is {describe(value)}", "write one JSON object a line")
    for key in MESSAGE_KEYS:
        messages = value.get(key)
        if isinstance(messages, list):
            thinks = any(isinstance(m, Mapping) and any(m.get(k) is not None for k in THINKING_KEYS) for m in messages)
            return "messages" if thinks else "openai"
    keys = ", ".join(list(map(str, value))[:8])
    what = f"no format has these fields ({keys[:200]})" if keys else "is an empty object"
    raise RowError("unknown_format", "row", what, "name it with --format, or write messages")
