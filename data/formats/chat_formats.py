"""The formats that are chats: names for what their rows have, of one reader (`chat.py`).

A name is a hint: whichever is given, every field is read that any of them has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.chat import chat_messages, read_chat
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.meaning import THINKING_KEYS
from counterpoint.data.formats.parts import has_blocks
from counterpoint.data.formats.tagged_messages import looks_tagged

_KEYS = frozenset(THINKING_KEYS)


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A name for chats with some sign."""

    name: str
    sign: Callable[[Mapping[str, Any], list[Any]], bool]

    def looks_like(self, row: Mapping[str, Any]) -> bool:
        messages = chat_messages(row)
        return messages is not None and self.sign(row, messages)

    def read(self, row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
        """Raises RowError."""
        return read_chat(row, Draft(self.name, options))


def is_turn(message: Any) -> bool:
    """Whether a message is a turn of ShareGPT."""
    return isinstance(message, dict) and "from" in message and "value" in message and "role" not in message


def _sharegpt(row: Mapping[str, Any], messages: list[Any]) -> bool:
    return any(map(is_turn, messages))


def _anthropic(row: Mapping[str, Any], messages: list[Any]) -> bool:
    """Blocks, a `system` of blocks, or tools with `input_schema`."""
    if isinstance(row.get("system"), list) or any(
        isinstance(m, dict) and has_blocks(m.get("content")) for m in messages
    ):
        return True
    tools = row.get("tools")
    return isinstance(tools, list) and any(isinstance(tool, dict) and "input_schema" in tool for tool in tools)


def _thinks(row: Mapping[str, Any], messages: list[Any]) -> bool:
    return any(
        isinstance(m, dict) and not _KEYS.isdisjoint(m) and any(m.get(key) is not None for key in THINKING_KEYS)
        for m in messages
    )


CHATS = {
    name: ChatFormat(name, sign)
    for name, sign in (
        ("sharegpt", _sharegpt),
        ("anthropic", _anthropic),
        ("hermes", lambda row, messages: looks_tagged(messages)),
        ("messages", _thinks),
        ("openai", lambda row, messages: True),
    )
}
