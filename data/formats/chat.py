"""The one reader of everything that is a list of messages, whatever key holds it and whoever wrote it.

OpenAI's chat rows, what Hugging Face data sets and servers made of them, ShareGPT's turns, Hermes' and Qwen's tags,
Anthropic's blocks, LangChain's and Gemini's messages: a field means the same in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.logs import ANSWER_KEYS, add_logged_answer, logged_answer
from counterpoint.data.formats.loss_flags import each_message, masked_speaker
from counterpoint.data.formats.meaning import is_said
from counterpoint.data.formats.message import CONTENT, add_messages, exchanges_apart, holds_messages, is_open, is_prompt
from counterpoint.data.formats.roles import is_speaker, speaker_named
from counterpoint.data.formats.system_texts import add_row_system, system_fields

MESSAGE_KEYS = (
    *("messages", "conversations", "conversation", "traj", "trajectory", "history", "dialogue", "dialog", "chat"),
    *("turns", "contents", "items", "thread"),
)


def messages_key(row: Mapping[str, Any]) -> str | None:
    """The field that holds a row's messages; None where it is no chat."""
    if isinstance(row.get("messages"), list):
        return "messages"
    return next((key for key in MESSAGE_KEYS if key in row and holds_messages(row[key])), None)


def chat_messages(row: Mapping[str, Any]) -> list[Any] | None:
    """The messages of a row, to detect its format; None where it is no chat."""
    key = messages_key(row)
    return None if key is None else row[key]


def read_chat(row: Mapping[str, Any], draft: Draft, key: str | None = None) -> Conversation:
    """A row with messages under `key` (else the first of `MESSAGE_KEYS`), system texts and tools beside them.

    An answer that stands apart (`choices`, `response`, ...) ends the conversation; then only that is trained. Raises
    RowError.
    """
    key = key or messages_key(row) or "messages"
    if key not in row:
        raise RowError("no_messages", key, "missing: no field holds messages", f"name it {key}, or map the columns")
    messages = exchanges_apart(row[key])
    read_declarations(draft, row, "")
    asks = is_prompt(messages)
    answer = logged_answer(row) if asks or is_open(messages) else None
    read = DECLARATIONS | system_fields(row) | {key} | ({answer} if answer else set())
    same = {name for name in ANSWER_KEYS if is_said(row.get(name)) and _is_last(row[name], messages)}
    read_common(draft, row, read | same, quiet=asks and answer is None)
    add_row_system(draft, row, messages)
    draft.is_context = answer is not None
    add_messages(draft, messages, key, factors=_factors(row, messages, draft))
    draft.is_context = False
    if answer is not None:
        add_logged_answer(draft, row[answer], answer)
    return draft.finish()


def _is_last(answer: Any, messages: Any) -> bool:
    """Whether a column repeats what the last message says."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and answer in (last, *(last.get(key) for key in CONTENT))


def _factors(row: Mapping[str, Any], messages: Any, draft: Draft) -> list[float] | None:
    """The factors on the loss that a row gives its messages."""
    if not isinstance(messages, list):
        return None
    factors = each_message(row, len(messages), draft.notice)
    masked = masked_speaker("mask", row.get("mask"))
    if masked is None:
        return factors
    speaker = speaker_named(masked)
    if speaker is None:
        draft.notice("no_loss_flag", "mask", f"{masked[:40]!r} is nobody who speaks: not obeyed")
        return factors
    hidden = [is_speaker(message, speaker) for message in messages]
    return [0.0 if off else factor for off, factor in zip(hidden, factors or [1.0] * len(messages), strict=True)]
