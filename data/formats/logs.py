"""Answers that stand apart from their prompt, as logs of requests and responses have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import describe
from counterpoint.data.formats.meaning import ALL_THINKING_KEYS, is_said
from counterpoint.data.formats.message import add_message, add_messages
from counterpoint.data.formats.tagged_messages import add_answer
from counterpoint.data.formats.thinking import is_thinking, thinking_of

ANSWER_KEYS = ("choices", "completion", "response", "output", "chosen_response")


def logged_answer(row: Mapping[str, Any]) -> str | None:
    """The field beside messages that holds the answer to them; None where there is none."""
    return next((key for key in ANSWER_KEYS if _is_answer(row.get(key))), None)


def _is_answer(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) and (bool({"choices", "message", "content", "tool_calls", "kwargs"} & set(value)))


def add_logged_answer(draft: Draft, value: Any, field: str) -> None:
    """The answer: a text, a message, messages, or a chat completion, whose first choice is taken. Raises RowError."""
    if isinstance(value, dict) and isinstance(value.get("choices"), list):
        value, field = value["choices"], f"{field}.choices"
    if (
        isinstance(value, list)
        and value
        and isinstance(value[0], dict)
        and ("message" in value[0] or "index" in value[0])
    ):
        if len(value) > 1:
            draft.notice("several_choices", field, f"the first of {len(value)} was taken")
        value, field = value[0], f"{field}[0]"
    if isinstance(value, dict) and "role" not in value and isinstance(value.get("message"), (dict, str)):
        value, field = value["message"], f"{field}.message"
    if isinstance(value, dict) and isinstance(value.get("text"), str) and "role" not in value:
        value, field = value["text"], f"{field}.text"
    if isinstance(value, str):
        add_answer(draft, field, text=value, text_field=field)
    elif isinstance(value, dict):
        add_message(draft, {"role": "assistant", **value}, field)
    elif isinstance(value, list):
        add_messages(draft, value, field)
    else:
        raise RowError("no_answer", field, f"is {describe(value)}", "write the answer as a string or as a message")


def thinking_beside(draft: Draft, row: Mapping[str, Any]) -> tuple[str | None, frozenset[str]]:
    """The chain of thought in a row's own fields, for its answer, and the names of those fields. Raises RowError."""
    keys = [key for key in ALL_THINKING_KEYS if is_said(row.get(key)) and is_thinking(row[key])]
    return thinking_of(draft, row, "", keys), frozenset(keys)
