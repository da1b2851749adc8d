"""The columns of the data set HuggingFaceH4/Multilingual-Thinking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_text, text_of

_COLUMNS = frozenset({"developer", "user", "analysis", "final", "reasoning_language"})


def looks_like(row: Mapping[str, Any]) -> bool:
    return "user" in row and "final" in row


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """The columns as they are; `reasoning_language` is metadata. Raises RowError."""
    draft = Draft("multilingual_thinking", options)
    read_common(draft, row, _COLUMNS)
    if developer := text_of(row, "developer", ""):
        draft.system(developer, "developer")
    draft.user(as_text(row.get("user"), "user"), "user")
    analysis = text_of(row, "analysis", "")
    draft.assistant("final", thinking=analysis, text=as_text(row.get("final"), "final"), text_field="final")
    if (language := text_of(row, "reasoning_language", "")) is not None:
        draft.metadata["reasoning_language"] = language
        draft.notice("reasoning_language", "reasoning_language", "kept as metadata; say it in developer to teach it")
    return draft.finish()
