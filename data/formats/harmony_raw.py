"""Raw Harmony: text with control tokens, or token ids, kept verbatim.

The system and developer messages become `opening_ids`, every other message its `raw_ids`. Of a prompt with its response
only the response is trained; such a prompt may even hold malformed messages, because a server saw it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list, as_text, describe, one_of
from counterpoint.data.formats.harmony_system import parse_system
from counterpoint.data.harmony.parse import messages_of
from counterpoint.data.harmony.vocabulary import CALL, END, MESSAGE, N_VOCAB, RETURN, START, load_vocabulary

ID_KEYS = ("input_ids", "ids", "tokens", "token_ids")
TEXT_KEYS = ("text", "harmony")
RESPONSE_KEYS = ("response", "completion")
_STOPPED = frozenset({"stop", "tool_calls", "function_call", "end_turn", "tool_use"})
_READ = frozenset({*ID_KEYS, *TEXT_KEYS, *RESPONSE_KEYS, "prompt", "finish_reason"})
_ASKS = "<|start|>assistant"


def looks_raw(row: Mapping[str, Any]) -> bool:
    """Whether a row that is no chat holds raw text or ids."""
    if any(_are_ids(row.get(key)) for key in ID_KEYS):
        return True
    if any(_is_raw_text(row.get(key)) for key in (*TEXT_KEYS, "prompt")):
        return True
    return any(_is_raw_text(row.get(key)) for key in RESPONSE_KEYS) and not isinstance(row.get("prompt"), list)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], int) and not isinstance(value[0], bool)


def _is_raw_text(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(("<|start|>", "<|channel|>"))


def read_raw(row: Mapping[str, Any], draft: Draft) -> Conversation:
    """A row of `text`, of `prompt` and maybe `response`, or of ids. Raises RowError."""
    read_common(draft, row, _READ)
    for key in ID_KEYS:
        if row.get(key) is not None:
            return _conversation(_ids(row[key], key), 0, key, draft)
    encode = load_vocabulary().encode_with_specials
    for key in TEXT_KEYS:
        if row.get(key) is not None:
            ids = encode(as_text(row[key], key).strip("\n"))
            return _conversation(_ended(ids, key, draft, row), 0, key, draft)
    prompt = as_text(row.get("prompt"), "prompt").strip("\n")
    key = next((key for key in RESPONSE_KEYS if row.get(key) is not None), None)
    if key is None:
        return _conversation(encode(prompt), 0, "prompt", draft)
    if not prompt.endswith(_ASKS):
        raise RowError(
            "no_generation_prompt", "prompt", "does not end where the response begins", f"end it with {_ASKS}"
        )
    asked = encode(prompt)
    whole = _ended([*asked, *encode(as_text(row[key], key))], key, draft, row)
    try:
        return _conversation(whole, len(asked), "prompt", draft)
    except RowError as error:
        return _behind(asked, whole[len(asked) :], key, draft, error)


def _ids(value: Any, field: str) -> list[int]:
    for i, id_ in enumerate(as_list(value, field)):
        if isinstance(id_, bool) or not isinstance(id_, int) or not 0 <= id_ < N_VOCAB:
            what = f"is {describe(id_)}" if not isinstance(id_, int) else f"{id_} is no id of gpt-oss"
            raise RowError("wrong_type", f"{field}[{i}]", what, f"write token ids from 0 to {N_VOCAB - 1}")
    return value


def _conversation(ids: list[int], n_context: int, field: str, draft: Draft) -> Conversation:
    """The conversation that `ids` are; assistant messages that begin before `n_context - 1` are not trained."""
    if not ids or ids[0] != START:
        raise RowError("no_prompt", field, "does not begin with <|start|>: a completion without its prompt", "add it")
    messages = _messages(ids, field)
    starts = [i for i, id_ in enumerate(ids) if id_ == START]
    spans = [tuple(ids[a:b]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    size = 0
    while size < len(messages) and str(messages[size].role) in ("system", "developer"):
        _describe_opening(draft, messages[size])
        size += 1
    kept: list[Message] = []
    for message, span, start in zip(messages[size:], spans[size:], starts[size:], strict=False):
        is_context = start < n_context - 2
        kept.append(_kept(message, span, is_context))
    if not kept:
        raise RowError("no_dialogue", field, "no user and no assistant message", "write a user message and its answer")
    return draft.conversation(tuple(kept), opening_ids=tuple(id_ for span in spans[:size] for id_ in span))


def _messages(ids: list[int], field: str) -> tuple[Message, ...]:
    try:
        return messages_of(ids, load_vocabulary(), keep_ids=True)
    except RowError as error:
        raise RowError(error.kind, f"{field}.{error.field}", error.what, error.fix) from None


def _behind(prompt: list[int], answer: list[int], field: str, draft: Draft, error: RowError) -> Conversation:
    """The response after a prompt that is not well-formed Harmony: all of it but `<|start|>assistant` stays as ids."""
    if not answer:
        raise error
    messages = _messages(answer, field)
    draft.notice("malformed_prompt", error.field, f"{error.what}: the prompt was kept verbatim, only as ids")
    kept = tuple(_kept(message, (), False) for message in messages)
    return draft.conversation(kept, opening_ids=tuple(prompt[:-2]))


def _describe_opening(draft: Draft, message: Message) -> None:
    """The settings in the opening, for reports: its ids are what is rendered."""
    block = parse_system(message.content) if str(message.role) == "system" else None
    if block is not None:
        draft.effort, draft.date, draft.identity = block.effort or draft.effort, block.date, block.identity
        draft.names.offer(block.builtin_tools)
    else:
        draft.instructions.append(message.content.removeprefix("# Instructions\n\n"))


def _kept(message: Message, span: tuple[int, ...], is_context: bool) -> Message:
    if message.role != "assistant":
        role = "developer" if str(message.role) == "system" else message.role
        return replace(message, role=role, raw_ids=span)
    raw = message.raw_ids or (END,)
    if message.is_final and raw[-1] == END:  # in a history a final ends so; as a target it ends the turn
        raw = (*raw[:-1], RETURN)
    return replace(message, raw_ids=raw, weight=0.0 if is_context else 1.0)


def _ended(ids: list[int], field: str, draft: Draft, row: Mapping[str, Any]) -> list[int]:
    """A server leaves out the stop token: it is added again where the finish reason shows that there was one."""
    starts = [i for i, id_ in enumerate(ids) if id_ == START]
    last = ids[starts[-1] :] if starts else []
    if len(last) < 3 or last[-1] in (END, CALL, RETURN):
        return ids
    if not one_of(row.get("finish_reason"), _STOPPED):
        raise RowError("truncated", field, "the last message does not end", 'end it, or say finish_reason "stop"')
    header = load_vocabulary().decode(last[: last.index(MESSAGE)] if MESSAGE in last else last)
    draft.notice("stop_added", field, "the stop token that the server left out was written again")
    return [*ids, CALL if " to=" in header else RETURN]
