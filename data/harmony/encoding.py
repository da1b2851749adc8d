"""Harmony's message grammar as token ids: one function a piece of it.

    <|start|>{role}{:name}?{ to=recipient}?(<|channel|>{channel}{ to=recipient}?)?({ content_type})?
    <|message|>{content}(<|end|>|<|call|>|<|return|>)

Each header piece is tokenized on its own, as openai-harmony 0.0.8 does. Source: the Harmony format guide
(https://cookbook.openai.com/articles/openai-harmony) and openai-harmony's `encoding.rs`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from counterpoint.data.conversation import Message
from counterpoint.data.harmony.vocabulary import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, START, Vocabulary

CallStyle = Literal["channel", "role"]
CONSTRAIN_TEXT = "<|constrain|>"


class Grammar:
    """Writes headers and messages with one vocabulary. Header pieces repeat, so they are cached."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._piece = lru_cache(maxsize=65_536)(self._encode_piece)
        self.start_assistant: tuple[int, ...] = (START, *self._piece("assistant"))

    def _encode_piece(self, text: str) -> tuple[int, ...]:
        return tuple(self.vocabulary.encode(text))

    def content_type(self, content_type: str | None) -> tuple[int, ...]:
        """` <|constrain|>json` holds the special token; any other content type is plain text."""
        if not content_type:
            return ()
        if content_type.startswith(CONSTRAIN_TEXT):
            rest = content_type[len(CONSTRAIN_TEXT) :]
            return (*self._piece(" "), CONSTRAIN, *(self._piece(rest) if rest else ()))
        return self._piece(" " + content_type)

    def header_after_role(self, message: Message, style: CallStyle) -> tuple[int, ...]:
        """From the token after the role to `<|message|>`; `style` is the section that a recipient stands in."""
        recipient = self._piece(f" to={message.recipient}") if message.recipient is not None else ()
        if message.channel is None:
            return (*recipient, *self.content_type(message.content_type), MESSAGE)
        channel = (CHANNEL, *self._piece(message.channel))
        places = (recipient, channel) if style == "role" else (channel, recipient)
        return (*places[0], *places[1], *self.content_type(message.content_type), MESSAGE)

    def role(self, message: Message) -> tuple[int, ...]:
        """`<|start|>` and the role; a tool's result has the tool's full name as its role."""
        if message.role == "tool":
            return (START, *self._piece(message.name or ""))
        if message.name is not None:
            return (START, *self._piece(message.role), *self._piece(f":{message.name}"))
        return (START, *self._piece(message.role))

    def context(self, message: Message) -> list[int]:
        """A whole message of the history, as openai-harmony writes it: a final ends with `<|end|>`."""
        if message.role == "assistant" and message.raw_ids is not None:
            return [*self.start_assistant, *message.raw_ids[:-1], CALL if message.raw_ids[-1] == CALL else END]
        if message.role == "tool":
            head = (*self.role(message), *self._piece(" to=assistant"), *self.header_after_role(message, "role"))
        else:
            head = (*self.role(message), *self.header_after_role(message, "role"))
        end = CALL if message.is_call else END
        return [*head, *self.vocabulary.encode(message.content), end]
