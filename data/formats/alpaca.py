"""Alpaca: `instruction`, `input`, `output`, `system`, `history`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.tables import columns_of, read_table

_COLUMNS = {"prompt": "instruction", "context": "input", "answer": "output", "history": "history"}


def looks_like(row: Mapping[str, Any]) -> bool:
    return "instruction" in row and "output" in row


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """user = instruction, a line break, input; the answer is output. Raises RowError."""
    return read_table(row, {**(columns_of(row) or {}), **_COLUMNS}, Draft("alpaca", options))
