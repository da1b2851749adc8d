"""The chain of thought in fields of a message or of a row, whichever name it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import describe, join
from counterpoint.data.formats.meaning import ALL_THINKING_KEYS

_TEXT_KEYS = ("thinking", "text", "value", "reasoning", "reasoning_text", "content", "summary")
_ENCRYPTED = frozenset({"redacted_thinking", "reasoning.encrypted"})
_KEYS = frozenset(ALL_THINKING_KEYS)
_SWITCHES = frozenset({"on", "off", "yes", "no", "true", "false", "none", "auto", "low", "medium", "high", ""})


def is_thinking(value: Any) -> bool:
    """Whether what a reasoning field holds is reasoning, not a switch (`"reasoning": "on"`) or a setting."""
    if isinstance(value, str):
        return value.strip().lower() not in _SWITCHES
    return isinstance(value, list) and bool(value)


def thinking_of(
    draft: Draft, holder: Mapping[str, Any], field: str, keys: Iterable[str] = ALL_THINKING_KEYS
) -> str | None:
    """The chain of thought next to the content. Raises RowError where there are two different ones."""
    found: str | None = None
    if keys is ALL_THINKING_KEYS and _KEYS.isdisjoint(holder):
        return None
    for key in keys:
        value = holder.get(key)
        if value is None:
            continue
        where = join(field, key)
        text = _text(draft, value, where)
        if not text or not text.strip():
            draft.notice("empty_thinking", where, "empty thinking was left out")
        elif found is not None and found.strip() != text.strip():
            raise RowError("two_thinkings", where, "a second, different chain of thought", "keep one of them")
        else:
            found = found or text
    return found


def part_thinking(draft: Draft, part: Mapping[str, Any], field: str) -> str:
    """The text of a part that holds thinking; "" where it is encrypted. Raises RowError."""
    if part.get("type") in _ENCRYPTED:
        draft.notice("redacted_thinking", field, "encrypted thinking was left out")
        return ""
    for key in _TEXT_KEYS:
        value = part.get(key)
        if value is None:
            continue
        if key == "summary" or part.get("type") == "reasoning.summary":
            draft.notice("reasoning_summary", join(field, key), "a summary, not the chain of thought itself")
        return _text(draft, value, join(field, key))
    raise RowError("wrong_type", f"{field}.text", "missing or null", "write the thinking as a string")


def _text(draft: Draft, value: Any, field: str) -> str:
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    texts: list[str] = []
    for i, part in enumerate(parts):
        where = f"{field}[{i}]" if isinstance(value, list) else field
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            texts.append(part_thinking(draft, part, where))
        else:
            raise RowError("wrong_type", where, f"is {describe(part)}", "write the thinking as a string")
    if len(texts) > 1:
        draft.notice("joined_parts", field, f"{len(texts)} text parts were joined")
    return "".join(texts)
