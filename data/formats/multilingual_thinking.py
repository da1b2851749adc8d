"""The columns of the data set HuggingFaceH4/Multilingual-Thinking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Conversation, Notice
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import text_of
from counterpoint.data.formats.tables import read_table

_COLUMNS = {
    "system": "developer",
    "prompt": "user",
    "thinking": "analysis",
    "answer": "final",
    "language": "reasoning_language",
}


def looks_like(row: Mapping[str, Any]) -> bool:
    return "user" in row and "final" in row


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """The columns as they are; `reasoning_language` is metadata. Raises RowError."""
    draft = Draft("multilingual_thinking", options)
    conversation = read_table(row, _COLUMNS, draft)
    if (language := text_of(row, "reasoning_language", "")) is None:
        return conversation
    told = "kept as metadata; say it in developer to teach it"
    return replace(
        conversation,
        metadata={**conversation.metadata, "reasoning_language": language},
        notices=(*conversation.notices, Notice("reasoning_language", "reasoning_language", told)),
    )
