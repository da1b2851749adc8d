"""One row's value -> Conversation or Preference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Notice, Preference
from counterpoint.data.formats.fields import as_object
from counterpoint.data.formats.registry import AUTO, detect, format_named
from counterpoint.data.formats.user_format import call_format
from counterpoint.data.harmony.window import split_turns
from counterpoint.data.user_code.loader import is_function

Converted = Conversation | Preference
_MESSAGE_COLUMNS = ("messages", "conversations", "prompt", "chosen", "rejected", "completion")


def convert(value: Any, format: str = AUTO, options: ConversionSettings | None = None) -> Converted:
    """Reads one row. format: of the table of formats, `auto`, or a user's own as `file.py:function`.

    Raises RowError where the row cannot be used, ConfigError where no format has that name.
    """
    if is_function(format):
        value, format = call_format(format, value), AUTO
        if isinstance(value, Conversation | Preference):
            return value
    value, notices = _unpacked(value)
    try:
        named = format_named(detect(value) if format == AUTO else format)
        row = as_object({"messages": value} if isinstance(value, list) else value, "row")
        converted = named.read(row, options or ConversionSettings())
        return _noticed(converted, notices) if notices else converted
    except RecursionError:
        raise RowError("too_deep", "row", "nested too deep", "flatten the row") from None


def _unpacked(value: Any) -> tuple[Any, list[Notice]]:
    """A row whose columns hold messages as JSON text (CSV, Parquet), with the texts read."""
    if not isinstance(value, dict):
        return value, []
    read: dict[str, Any] = {}
    for key in _MESSAGE_COLUMNS:
        text = value.get(key)
        if isinstance(text, str) and text.lstrip().startswith("[") and (messages := _messages_in(text)):
            read[key] = messages
    notices = [Notice("json_in_string", key, "messages given as text were read as JSON") for key in read]
    return ({**value, **read} if read else value), notices


def _messages_in(text: str) -> list[Any] | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    is_chat = isinstance(value, list) and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value)
    return value if is_chat else None


def _noticed(converted: Converted, notices: list[Notice]) -> Converted:
    if isinstance(converted, Preference):
        prompt = replace(converted.prompt, notices=(*notices, *converted.prompt.notices))
        return replace(converted, prompt=prompt)
    return replace(converted, notices=(*notices, *converted.notices))


def trainable(conversation: Conversation) -> None:
    """Raises RowError where supervised training has nothing to learn from: no assistant turn with a weight above 0."""
    if conversation.is_unwanted:
        what = "false: an answer that is not wanted is not trained"
        raise RowError("unwanted_answer", "label", what, "use it with dpo.losses: kto, or leave the row out")
    messages = conversation.messages
    turns = split_turns(messages)
    if not turns:
        last = messages[-1].role if messages else "no"
        what = f"no assistant answer or call to train (the row ends in a {last} message)"
        raise RowError("prompt_only", "messages", what, "add the answer, or use the row as a prompt for RL")
    weights = [
        messages[i].weight for t in turns for i in range(t.start, t.trained_stop) if messages[i].role == "assistant"
    ]
    if conversation.weight <= 0 or not any(weight > 0 for weight in weights):
        raise RowError(
            "nothing_trained", "messages", "every assistant message has weight 0", "give one of them weight 1"
        )
