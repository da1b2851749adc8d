"""Rated answers as TRL's KTO has them: `prompt` and `completion` (or `messages`), and a `label`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.answers import read_completion
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import wrong_type


def looks_like(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("label"), bool) and ("completion" in row or isinstance(row.get("messages"), list))


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """The conversation, with the label as metadata. Raises RowError."""
    if not isinstance(row.get("label"), bool):
        raise wrong_type(row.get("label"), "label", "true for a wanted answer, false for an unwanted one")
    conversation = read_completion(row, Draft("kto", options))
    return replace(conversation, metadata={**conversation.metadata, "label": row["label"]})
