"""System texts that stand in a row beside its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.data.formats.content import content_text
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.roles import is_speaker
from counterpoint.data.formats.tagged_messages import add_system

SYSTEM_KEYS = ("system", "system_prompt", "instructions", "system_message", "systemInstruction", "system_instruction")


def system_fields(row: Mapping[str, Any], keys: Sequence[str] = SYSTEM_KEYS) -> frozenset[str]:
    """The fields of a row that are system texts."""
    return frozenset(key for key in keys if isinstance(row.get(key), (str, list, dict)))


def add_row_system(
    draft: Draft, row: Mapping[str, Any], messages: Any = None, keys: Sequence[str] = SYSTEM_KEYS
) -> None:
    """Adds them; one that the messages begin with is not written twice. Raises RowError."""
    first: Any = messages[0] if isinstance(messages, list) and messages else None
    opening = first.get("content", first.get("value")) if is_speaker(first, "system") else None
    seen: list[str] = []
    for key in keys:
        if key not in system_fields(row, keys):
            continue
        text = content_text(row[key], key, draft.options, draft.notice)
        if text is None or (not text and key != "system") or text in seen:
            continue
        if text and text == opening:
            draft.notice("same_system", key, "the messages begin with it: written once")
            continue
        seen.append(text)
        add_system(draft, text, key)
