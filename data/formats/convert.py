"""One row's value -> Conversation or Preference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Notice, Preference
from counterpoint.data.formats.chat import MESSAGE_KEYS
from counterpoint.data.formats.fields import as_object
from counterpoint.data.formats.mapped import Mapped, read_mapped
from counterpoint.data.formats.registry import AUTO, detect, format_named
from counterpoint.data.formats.transcripts import transcript
from counterpoint.data.formats.unwrap import unwrapped
from counterpoint.data.formats.user_format import call_format
from counterpoint.data.harmony.window import split_turns
from counterpoint.data.rows.strict_json import loads
from counterpoint.data.user_code.loader import is_function

Converted = Conversation | Preference
_ANSWERS = ("answer", "solution", "target", "ideal", "reference_answer")
_MESSAGE_COLUMNS = (*MESSAGE_KEYS, "prompt", "chosen", "rejected", "completion", "input", "output")


def convert(value: Any, format: str = AUTO, options: ConversionSettings | None = None) -> Converted:
    """Reads one row. format: of the table of formats, `auto`, or a user's own as `file.py:function`.

    Raises RowError where the row cannot be used, ConfigError where no format has that name.
    """
    if isinstance(value, Mapped):
        inner, notices = _unpacked(value.value, tuple(value.columns.values()))
        converted = read_mapped(replace(value, value=inner), options or ConversionSettings())
        return _noticed(converted, notices) if notices else converted
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


def _unpacked(value: Any, columns: Sequence[str] = ()) -> tuple[Any, list[Notice]]:
    """A row whose columns hold messages as JSON text (CSV, Parquet), with the texts read."""
    if not isinstance(value, dict):
        return value, []
    value, around = unwrapped(value) if not columns else (value, None)
    if around is not None:
        inner, notices = _unpacked(value)
        return inner, [Notice("unwrapped_row", around, "the row was taken out of it"), *notices]
    read: dict[str, Any] = {}
    for key in (*_MESSAGE_COLUMNS, *columns):
        text = value.get(key)
        if isinstance(text, str) and text.lstrip().startswith("[") and (messages := _messages_in(text)):
            read[key] = messages
    notices = [Notice("json_in_string", key, "messages given as text were read as JSON") for key in read]
    if read:
        return {**value, **read}, notices
    if messages := _messages_of_text(value):
        key, said = messages
        told = Notice("transcript", key, f"a chat in one field was read as {len(said)} messages")
        return {"messages": said, **{name: other for name, other in value.items() if name != key}}, [told]
    return value, notices


def _messages_of_text(row: Mapping[str, Any]) -> tuple[str, list[Any]] | None:
    """The chat that a row holds in one text (`text`), or as texts in turns (UltraChat's `data`), and in which field."""
    if isinstance(row.get("text"), str) and "messages" not in row and (said := transcript(row["text"])):
        return "text", said
    turns = row.get("data")
    if not isinstance(turns, list) or {"messages", "prompt", "question"} & set(row):
        return None
    if len(turns) > 1 and all(isinstance(turn, str) for turn in turns):
        speakers = ("user", "assistant")
        return "data", [{"role": speakers[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return None


def _messages_in(text: str) -> list[Any] | None:
    try:
        value = loads(text.encode())
    except RowError:
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
        reference = next((key for key in _ANSWERS if isinstance(conversation.metadata.get(key), str)), None)
        fix = "add the answer, or use the row as a prompt for RL"
        if conversation.format == "rl" and reference is not None:
            mapping = f"columns: {{prompt: ..., answer: {reference}}}"
            fix = f"`{reference}` is a reference for RL; to train it map the source's `{mapping}`"
        raise RowError("prompt_only", "messages", what, fix)
    weights = [
        messages[i].weight for t in turns for i in range(t.start, t.trained_stop) if messages[i].role == "assistant"
    ]
    if conversation.weight <= 0 or not any(weight > 0 for weight in weights):
        raise RowError(
            "nothing_trained", "messages", "every assistant message has weight 0", "give one of them weight 1"
        )
