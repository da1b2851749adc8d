"""Pairs of answers (OpenAI preference, TRL's `prompt/chosen/rejected`) and rated answers (KTO's `label`).

Both answers of a pair are read behind the same prompt, so that they share its ids exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.formats.chat import add_messages
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list, as_object, describe, wrong_type
from counterpoint.data.formats.hermes import add_tagged_assistant, looks_tagged
from counterpoint.data.formats.openai import DECLARATIONS, read_declarations
from counterpoint.data.formats.tags import has_tags

_TRL = frozenset({"prompt", "chosen", "rejected", "system"})
_OPENAI = frozenset({"input", "preferred_output", "non_preferred_output"})
_ANSWER_FIX = "write the answer as a string or as messages"


def convert_openai_preference(row: Mapping[str, Any], format: str, options: ConversionSettings) -> Preference:
    """`{"input": {messages, tools}, "preferred_output", "non_preferred_output"}`. Raises RowError."""
    given = as_object(row.get("input"), "input")
    messages = as_list(given.get("messages"), "input.messages")

    def begin() -> Draft:
        draft = Draft(format, options)
        read_declarations(draft, given, "input")
        read_common(draft, {k: v for k, v in given.items() if k != "messages"}, DECLARATIONS)
        read_common(draft, row, _OPENAI)
        return draft

    return _pair(begin, messages, "input.messages", row, ("preferred_output", "non_preferred_output"))


def convert_preference(row: Mapping[str, Any], format: str, options: ConversionSettings) -> Preference:
    """`chosen` and `rejected` behind `prompt`, or behind the messages that both begin with. Raises RowError."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    prompt, answers = row.get("prompt"), [chosen, rejected]
    where = "prompt"
    if prompt is None:
        prompt, answers = _shared(chosen, rejected)
        where = "chosen"
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    prompt = as_list(prompt, where)
    if isinstance(chosen, list) and prompt and chosen[: len(prompt)] == prompt and len(chosen) > len(prompt):
        answers = [_after(chosen, prompt), _after(rejected, prompt)]
    if isinstance(row.get("system"), str):
        prompt = [{"role": "system", "content": row["system"]}, *prompt]

    def begin() -> Draft:
        draft = Draft(format, options)
        read_declarations(draft, row, "")
        read_common(draft, row, DECLARATIONS | _TRL)
        return draft

    both = {"chosen": answers[0], "rejected": answers[1]}
    return _pair(begin, prompt, where, both, ("chosen", "rejected"))


def _pair(
    begin: Callable[[], Draft], messages: list[Any], where: str, row: Mapping[str, Any], keys: tuple[str, str]
) -> Preference:
    draft = begin()
    add_messages(draft, messages, where, tags=looks_tagged(messages))
    prompt = draft.finish()
    chosen, rejected = (_side(prompt, begin(), messages, where, row.get(key), key) for key in keys)
    return _preference(prompt, chosen, rejected, keys[1])


def convert_kto(row: Mapping[str, Any], format: str, options: ConversionSettings) -> Conversation:
    """`prompt` and `completion` (or `messages`), and a `label`, which becomes metadata. Raises RowError."""
    if not isinstance(row.get("label"), bool):
        raise wrong_type(row.get("label"), "label", "true for a wanted answer, false for an unwanted one")
    conversation = convert_completion(row, format, options)
    return replace(conversation, metadata={**conversation.metadata, "label": row["label"]})


def convert_completion(row: Mapping[str, Any], format: str, options: ConversionSettings) -> Conversation:
    """`prompt` and `completion` (of which the completion is trained), or `messages`. Raises RowError."""
    draft = Draft(format, options)
    read_declarations(draft, row, "")
    read_common(draft, row, DECLARATIONS | {"prompt", "completion", "messages", "label", "system"})
    if isinstance(row.get("system"), str):
        draft.system(row["system"], "system")
    if row.get("messages") is not None:
        add_messages(draft, row["messages"], "messages", tags=looks_tagged(row["messages"]))
    else:
        draft.is_context = True
        add_prompt(draft, row.get("prompt"), "prompt")
        draft.is_context = False
        _add_answer(draft, row.get("completion"), "completion")
    return draft.finish()


def add_prompt(draft: Draft, prompt: Any, field: str) -> None:
    """A prompt: a string is what the user says. Raises RowError."""
    if isinstance(prompt, str):
        draft.user(prompt, field)
    elif isinstance(prompt, list):
        add_messages(draft, prompt, field, tags=looks_tagged(prompt))
    else:
        raise RowError("wrong_type", field, f"is {describe(prompt)}", "write the prompt as a string or as messages")


def _side(prompt: Conversation, draft: Draft, messages: list[Any], where: str, answer: Any, key: str) -> Conversation:
    """The conversation of one side; it begins with the messages of `prompt`."""
    add_messages(draft, messages, where, tags=looks_tagged(messages))
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
        if has_tags(answer):
            add_tagged_assistant(draft, answer, field)
        else:
            draft.assistant(field, text=answer, text_field=field)
    elif isinstance(answer, list) and answer:
        add_messages(draft, answer, field, tags=looks_tagged(answer))
    else:
        raise RowError("no_answer", field, f"is {describe(answer)}", _ANSWER_FIX)


def _preference(prompt: Conversation, chosen: Conversation, rejected: Conversation, field: str) -> Preference:
    size = len(prompt.messages)
    good, bad = chosen.messages[size:], rejected.messages[size:]
    if good == bad:
        raise RowError("same_answers", field, "is the same as the other answer", "write two different answers")
    notices = tuple(dict.fromkeys((*chosen.notices, *rejected.notices)))
    return Preference(replace(prompt, notices=notices), good, bad)


def _shared(chosen: Any, rejected: Any) -> tuple[list[Any], list[Any]]:
    """The messages that both sides begin with, and what is left of each."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        fix = "write prompt, or chosen and rejected as messages"
        raise RowError("no_prompt", "prompt", "missing, and the answers are no messages", fix)
    size = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b or (isinstance(a, dict) and a.get("role") == "assistant" and _is_last(size, chosen, rejected)):
            break
        size += 1
    if not size:
        raise RowError("no_prompt", "chosen", "shares no message with rejected", "write prompt")
    return chosen[:size], [chosen[size:], rejected[size:]]


def _is_last(index: int, chosen: Sequence[Any], rejected: Sequence[Any]) -> bool:
    return index + 1 in (len(chosen), len(rejected))


def _after(answer: Any, prompt: list[Any]) -> Any:
    if isinstance(answer, list) and answer[: len(prompt)] == prompt:
        return answer[len(prompt) :]
    return answer
