"""Harmony's message grammar as token ids: one function a piece of it.

    <|start|>{role}{:name}?{ to=recipient}?(<|channel|>{channel}{ to=recipient}?)?({ content_type})?
    <|message|>{content}(<|end|>|<|call|>|<|return|>)

Each header piece is tokenized on its own, as openai-harmony 0.0.8 does. Source: the Harmony format guide
(https://cookbook.openai.com/articles/openai-harmony) and openai-harmony's `encoding.rs`.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import Literal

from counterpoint.configs.data_section import CallStyle
from counterpoint.data.conversation import Message
from counterpoint.data.harmony.vocabulary import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, START, Vocabulary

_CALL, _END = array("i", [CALL]), array("i", [END])
CONSTRAIN_TEXT = "<|constrain|>"
_MAX_HEADS = 65_536

Place = Literal["role", "channel", "bare", "no_channel"]
"""Where a result's header names the assistant: after the role, behind the channel, not at all (and without a channel),
or after the role of a header without a channel."""


class Grammar:
    """Writes headers and messages with one vocabulary, as arrays of int32.

    Headers repeat, so they are cached: callers must not change what they get.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._piece = lru_cache(maxsize=65_536)(self._encode_piece)
        self._after_role = lru_cache(maxsize=65_536)(self._write_after_role)
        self._heads: dict[tuple[str | None, ...], array[int]] = {}
        self.start_assistant = array("i", (START, *self._piece("assistant")))

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

    def header_after_role(
        self, channel: str | None, recipient: str | None, content_type: str | None, style: CallStyle
    ) -> array[int]:
        """From the token after the role to `<|message|>`; `style` is the section of the header that holds a
        recipient."""
        return self._after_role(channel, recipient, content_type, style)

    def _write_after_role(
        self, channel: str | None, recipient: str | None, content_type: str | None, style: CallStyle
    ) -> array[int]:
        to = self._piece(f" to={recipient}") if recipient is not None else ()
        if channel is None:
            return array("i", (*to, *self.content_type(content_type), MESSAGE))
        named = (CHANNEL, *self._piece(channel))
        places = (to, named) if style == "role" else (named, to)
        return array("i", (*places[0], *places[1], *self.content_type(content_type), MESSAGE))

    def _write_head(self, message: Message, call_place: CallStyle, result_place: Place) -> array[int]:
        """`<|start|>` to `<|message|>` in the history; a tool's result has the tool's full name as its role."""
        if message.role != "tool":
            named = self._piece(f":{message.name}") if message.name is not None else ()
            head = (START, *self._piece(message.role), *named)
            return array("i", (*head, *self._after_role(*_headed(message), call_place)))
        head = (START, *self._piece(message.name or ""))
        if result_place == "bare":
            return array("i", (*head, MESSAGE))
        channel = None if result_place == "no_channel" else message.channel
        style = "channel" if result_place == "channel" else "role"
        return array("i", (*head, *self._after_role(channel, "assistant", message.content_type, style)))

    def context(
        self,
        message: Message,
        body: array[int] | None = None,
        call_place: CallStyle = "role",
        result_place: Place = "role",
    ) -> array[int]:
        """A complete message of the history: a final ends with `<|end|>`. `body` is the encoded content, where the
        caller has it; the places are those of `serving.ServedForm`."""
        if message.raw_ids is not None:
            if message.role != "assistant":
                return array("i", message.raw_ids)
            end = CALL if message.raw_ids[-1] == CALL else END
            return array("i", (*self.start_assistant, *message.raw_ids[:-1], end))
        key = (message.role, message.name, *_headed(message), call_place, result_place)
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = self._write_head(message, call_place, result_place)
            if len(self._heads) > _MAX_HEADS:
                self._heads.pop(next(iter(self._heads)))
        if body is None:
            body = self.vocabulary.encode_array(message.content)
        return head + body + (_CALL if message.is_call else _END)


def _headed(message: Message) -> tuple[str | None, str | None, str | None]:
    return message.channel, message.recipient, message.content_type
