"""TRL's two columns `prompt` and `completion`, of which the completion is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.tables import columns_of, read_table

_COLUMNS = {"prompt": "prompt", "answer": "completion"}


def looks_like(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and "completion" in row


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """A prompt and its completion, strings or messages. Raises RowError."""
    return read_completion(row, Draft("completion", options))


def read_completion(row: Mapping[str, Any], draft: Draft) -> Conversation:
    """`read` into a draft."""
    return read_table(row, {**(columns_of(row) or {}), **_COLUMNS}, draft)
