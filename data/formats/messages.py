"""Chat messages with thinking next to the content, as Hugging Face data sets and servers write them.

`thinking` of gpt-oss, `reasoning_content` of DeepSeek, Qwen and vLLM, `reasoning` of OpenRouter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.chat import THINKING_KEYS, chat_messages, read_chat
from counterpoint.data.formats.draft import Draft


def looks_like(row: Mapping[str, Any]) -> bool:
    for message in chat_messages(row) or ():
        if isinstance(message, dict):
            for key in THINKING_KEYS:
                if message.get(key) is not None:
                    return True
    return False


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """A row of format `openai` whose messages may have thinking. Raises RowError."""
    return read_chat(row, Draft("messages", options))
