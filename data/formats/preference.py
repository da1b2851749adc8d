"""Pairs of answers in every layout: columns of TRL, UltraFeedback and Orca, of Axolotl, LLaMA-Factory and ms-swift, and
the texts of HH-RLHF."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Preference
from counterpoint.data.formats.answers import read_pair
from counterpoint.data.formats.chat import messages_key
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list, describe
from counterpoint.data.formats.meaning import ALL_THINKING_KEYS, is_said
from counterpoint.data.formats.message import is_open, is_prompt
from counterpoint.data.formats.roles import is_speaker
from counterpoint.data.formats.system_texts import add_row_system, system_fields
from counterpoint.data.formats.tables import Columns
from counterpoint.data.formats.transcripts import transcript

_CHOSEN = ("chosen", "chosen_response", "chosen_messages")
_REJECTED = ("rejected", "rejected_response", "rejected_messages")
_PROMPTS = ("prompt", "question", "instruction", "query", "input")
_CONTEXTS = ("input", "context")
_FIX = "write prompt, or chosen and rejected as messages"


def looks_like(row: Mapping[str, Any]) -> bool:
    return _columns(row) is not None or ("chosen" in row and "prompt" in row)


def read(row: Mapping[str, Any], options: ConversionSettings) -> Preference:
    """Two answers behind a prompt, or behind the messages that both begin with. Raises RowError."""
    columns = _columns(row)
    if columns is None:
        here, gone = ("chosen", "rejected") if "chosen" in row else ("rejected", "chosen")
        fix = "write both; to train the answer alone, map the source's `columns: {prompt: prompt, answer: chosen}`"
        raise RowError("no_pair", gone, f"missing beside {here}", fix)
    return read_sides(row, lambda: Draft("preference", options), columns)


def _columns(row: Mapping[str, Any]) -> Columns | None:
    """Which fields hold the sides and their prompt."""
    chosen = next((key for key in _CHOSEN if key in row), None)
    rejected = next((key for key in _REJECTED if key in row), None)
    if rejected is None or (chosen is None and row.get(rejected) is None):
        return None
    messages = messages_key(row)
    if chosen is None:  # ms-swift: the messages end in the chosen answer
        ends = messages is not None and not is_prompt(row[messages])
        return {"chosen": messages, "rejected": rejected} if messages is not None and ends else None
    found = {"chosen": chosen, "rejected": rejected}
    prompt = next((key for key in _PROMPTS if isinstance(row.get(key), (str, list)) and row[key]), None)
    if prompt is not None:
        found["prompt"] = prompt
        context = next((key for key in _CONTEXTS if key != prompt and isinstance(row.get(key), str)), None)
        if prompt == "instruction" and context:
            found["context"] = context
    elif messages is not None and is_open(row[messages]):
        found["prompt"] = messages
    return found


def read_sides(row: Mapping[str, Any], begin: Callable[[], Draft], columns: Columns) -> Preference:
    """The answers in the columns `chosen` and `rejected`, after the one in `prompt`. Raises RowError."""
    keys = (columns["chosen"], columns["rejected"])
    sided = ((keys[0], "chosen"), (keys[1], "rejected"))
    sides = [row.get(key) for key in keys]
    where = columns.get("prompt", keys[0])
    prompt = _asked(row, columns)
    texts = [side for side in sides if isinstance(side, str)]
    if prompt is None and len(texts) == len(sides):
        read_as = [transcript(text) for text in texts]
        sides = [side or text for side, text in zip(read_as, sides, strict=True)]
    if prompt is None and keys[1] == "rejected_response" and isinstance(sides[0], list):
        size = _answer_start(sides[0])
        prompt, sides = sides[0][:size], [sides[0][size:], sides[1]]
    elif prompt is None or _hold_prompt(sides, prompt):
        prompt, sides = _shared(sides[0], sides[1], keys)
        where = keys[0]
    elif isinstance(sides[0], list) and prompt and sides[0][: len(prompt)] == prompt and len(sides[0]) > len(prompt):
        sides = [_after(side, prompt) for side in sides]
    prompt = as_list(prompt, where)
    thoughts = [_thinking_field(row, (key, side)) for key, side in sided]
    sides = [_with_thinking(side, row.get(name or "")) for side, name in zip(sides, thoughts, strict=True)]

    def begun() -> Draft:
        draft = begin()
        read_declarations(draft, row, "")
        read_common(draft, row, DECLARATIONS | system_fields(row) | {*columns.values(), *filter(None, thoughts)})
        add_row_system(draft, row, prompt)
        return draft

    return read_pair(begun, prompt, where, dict(zip(keys, sides, strict=True)), keys)


def _thinking_field(row: Mapping[str, Any], sides: tuple[str, str]) -> str | None:
    """The field that holds the chain of thought of a side: `chosen_thinking`, `rejected_reasoning`, ..."""
    names = (f"{side}_{thinking}" for side in sides for thinking in ALL_THINKING_KEYS)
    return next((name for name in names if is_said(row.get(name))), None)


def _with_thinking(answer: Any, thinking: Any) -> Any:
    """An answer with the chain of thought that a field beside it holds (`chosen_thinking`)."""
    if thinking is None:
        return answer
    if isinstance(answer, str):
        return {"role": "assistant", "content": answer, "thinking": thinking}
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict):
        return [*answer[:-1], {**answer[-1], "thinking": thinking}]
    return {**answer, "thinking": thinking} if isinstance(answer, dict) else answer


def _asked(row: Mapping[str, Any], columns: Columns) -> list[Any] | None:
    name = columns.get("prompt")
    prompt = row.get(name) if name else None
    if isinstance(prompt, str):
        context = row.get(columns.get("context", ""))
        text = f"{prompt}\n{context}" if isinstance(context, str) and context else prompt
        return transcript(text) or [{"role": "user", "content": text}]
    return prompt if prompt is None else as_list(prompt, name or "prompt")


def _hold_prompt(sides: Sequence[Any], prompt: list[Any]) -> bool:
    """Whether both sides begin before the prompt, with a system message, and hold what it asks."""
    if len(prompt) != 1 or not all(isinstance(side, list) and side and isinstance(side[0], dict) for side in sides):
        return False
    asked = prompt[0].get("content") if isinstance(prompt[0], dict) else None
    return all(
        is_speaker(side[0], "system")
        and any(isinstance(message, dict) and message.get("content") == asked for message in side)
        for side in sides
    )


def _answer_start(messages: list[Any]) -> int:
    """Where the messages after the last user's begin."""
    users = [i for i, message in enumerate(messages) if is_speaker(message, "user")]
    return users[-1] + 1 if users else 0


def _shared(chosen: Any, rejected: Any, keys: tuple[str, str]) -> tuple[list[Any], list[Any]]:
    """The messages that both sides begin with, and what is left of each."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        if chosen is None or rejected is None:
            gone = keys[0] if chosen is None else keys[1]
            raise RowError("no_answer", gone, f"is {describe(None)} or missing", "write the answer")
        raise RowError("no_prompt", "prompt", "missing, and the answers are no messages", _FIX)
    size = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b or (is_speaker(a, "assistant") and _is_last(size, chosen, rejected)):
            break
        size += 1
    if not size:
        raise RowError("no_prompt", keys[0], f"shares no message with {keys[1]}", "write prompt")
    return chosen[:size], [chosen[size:], rejected[size:]]


def _is_last(index: int, chosen: Sequence[Any], rejected: Sequence[Any]) -> bool:
    return index + 1 in (len(chosen), len(rejected))


def _after(answer: Any, prompt: list[Any]) -> Any:
    if isinstance(answer, list) and answer[: len(prompt)] == prompt:
        return answer[len(prompt) :]
    return answer
