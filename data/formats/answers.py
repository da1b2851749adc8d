"""Prompts with one or two separate answers: what the formats of pairs, of completions and of labels share.

Both answers of a pair are read after the same prompt, so that they share its ids exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import describe
from counterpoint.data.formats.message import add_messages
from counterpoint.data.formats.tagged_messages import add_answer

_ANSWER_FIX = "write the answer as a string or as messages"


def read_pair(
    begin: Callable[[], Draft], messages: list[Any], where: str, row: Mapping[str, Any], keys: tuple[str, str]
) -> Preference:
    """Two answers, `row[keys[0]]` the wanted one, after `messages`; `begin` makes a new draft. Raises RowError."""
    draft = begin()
    add_messages(draft, messages, where)
    prompt = draft.finish()
    chosen, rejected = (_side(prompt, begin(), messages, where, row.get(key), key) for key in keys)
    return _preference(prompt, chosen, rejected, keys[1])


def _side(prompt: Conversation, draft: Draft, messages: list[Any], where: str, answer: Any, key: str) -> Conversation:
    """The conversation of one side; it begins with the messages of `prompt`."""
    add_messages(draft, messages, where)
    _add_answer(draft, answer, key)
    whole = draft.finish()
    size = len(prompt.messages)
    if whole.messages[:size] != prompt.messages:
        raise RowError(
            "prompt_changes", key, "changes how its prompt is read", "let the answer begin a message of its own"
        )
    if len(whole.messages) == size or whole.messages[-1].role != "assistant":
        raise RowError("no_answer", key, "does not end in an assistant's answer", _ANSWER_FIX)
    return whole


def _add_answer(draft: Draft, answer: Any, field: str) -> None:
    if isinstance(answer, dict):
        answer = [answer]
    if isinstance(answer, str):
        add_answer(draft, field, text=answer, text_field=field)
    elif isinstance(answer, list) and answer:
        add_messages(draft, answer, field)
    else:
        raise RowError("no_answer", field, f"is {describe(answer)}", _ANSWER_FIX)


def _preference(prompt: Conversation, chosen: Conversation, rejected: Conversation, field: str) -> Preference:
    size = len(prompt.messages)
    good, bad = chosen.messages[size:], rejected.messages[size:]
    if good == bad:
        raise RowError("same_answers", field, "is the same as the other answer", "write two different answers")
    notices = tuple(dict.fromkeys((*chosen.notices, *rejected.notices)))
    return Preference(replace(prompt, notices=notices), good, bad)
