"""What the tests of formats share."""

from __future__ import annotations

from typing import Any

from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.formats.convert import convert

ASKED, ANSWERED = Message("user", "Q"), Message("assistant", "A", "final")


def read(row: Any) -> Conversation:
    """The row as a conversation."""
    conversation = convert(row)
    assert isinstance(conversation, Conversation)
    return conversation
