"""OpenAI's fine-tuning rows: chat, and reinforcement (prompts).

Source: https://platform.openai.com/docs/guides/fine-tuning and the format's API reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.chat import chat_messages, read_chat
from counterpoint.data.formats.draft import Draft


def looks_like(row: Mapping[str, Any]) -> bool:
    """Any chat that has the sign of no other format."""
    return chat_messages(row) is not None


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """`messages`, and `tools`, `functions`, `parallel_tool_calls`, `response_format`. Raises RowError."""
    return read_chat(row, Draft("openai", options))
