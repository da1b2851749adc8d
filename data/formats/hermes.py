"""Hermes and Qwen: chat messages with thinking, calls and results as tags in their texts, tools in the system text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.chat import chat_messages, read_chat
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.tagged_messages import looks_tagged


def looks_like(row: Mapping[str, Any]) -> bool:
    return looks_tagged(chat_messages(row))


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """A row of format `openai` whose texts hold tags. Raises RowError."""
    return read_chat(row, Draft("hermes", options), tags=True)
