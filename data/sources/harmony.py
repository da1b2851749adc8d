"""Harmony itself: messages with channels, raw text with control tokens, or token ids. Nothing is guessed.

Text and ids are kept verbatim: the system and developer messages as `opening_ids`, every message as `raw_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import CHANNELS, Channel, Conversation, Message, Role
from counterpoint.data.harmony.parse import messages_of
from counterpoint.data.harmony.tools import read_tools
from counterpoint.data.harmony.vocabulary import CALL, CHANNEL, END, MESSAGE, RETURN, START, load_vocabulary
from counterpoint.data.sources.content import content_text
from counterpoint.data.sources.draft import Draft
from counterpoint.data.sources.fields import as_list, as_object, as_text, describe, text_of
from counterpoint.data.sources.harmony_system import parse_system
from counterpoint.data.sources.names import BUILTIN_TOOLS
from counterpoint.data.sources.openai import DECLARATIONS, read_declarations
from counterpoint.data.sources.options import SourceOptions
from counterpoint.data.sources.row import read_common, read_effort, read_weight

ID_KEYS = ("input_ids", "ids", "tokens", "token_ids")
TEXT_KEYS = ("text", "harmony")
RESPONSE_KEYS = ("response", "completion")
_MESSAGE = frozenset({"role", "name", "author", "content", "channel", "recipient", "content_type", "weight"})
_STOPPED = frozenset({"stop", "tool_calls", "function_call", "end_turn", "tool_use"})
_RAW = frozenset({*ID_KEYS, *TEXT_KEYS, *RESPONSE_KEYS, "prompt", "finish_reason"})


def is_harmony_text(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(("<|start|>", "<|channel|>"))


def convert_harmony(row: Mapping[str, Any], format: str, options: SourceOptions) -> Conversation:
    """A row of messages, of raw text (`text`, or `prompt` and `response`), or of ids. Raises RowError."""
    if isinstance(row.get("messages"), list):
        return _convert_messages(row, format, options)
    draft = Draft(format, options)
    read_common(draft, row, _RAW)
    field, ids = _ids_of(row, draft)
    return _verbatim(ids, field, draft, row.get("finish_reason"))


def _ids_of(row: Mapping[str, Any], draft: Draft) -> tuple[str, list[int]]:
    for key in ID_KEYS:
        if row.get(key) is not None:
            listed = as_list(row[key], key)
            for i, id_ in enumerate(listed):
                if isinstance(id_, bool) or not isinstance(id_, int):
                    raise RowError("wrong_type", f"{key}[{i}]", f"is {describe(id_)}", "write token ids")
            return key, listed
    encode = load_vocabulary().encode_with_specials
    for key in TEXT_KEYS:
        if row.get(key) is not None:
            return key, encode(as_text(row[key], key).strip("\n"))
    prompt = as_text(row.get("prompt"), "prompt").strip("\n")
    response = next((as_text(row[key], key) for key in RESPONSE_KEYS if row.get(key) is not None), "")
    if response and not prompt.endswith("<|start|>assistant") and not response.startswith("<|start|>"):
        fix = "end the prompt with <|start|>assistant"
        raise RowError("no_generation_prompt", "prompt", "does not end where the response begins", fix)
    return "prompt", encode(prompt + response)


def _verbatim(ids: list[int], field: str, draft: Draft, finish_reason: Any) -> Conversation:
    vocabulary = load_vocabulary()
    if ids and ids[0] == CHANNEL:
        raise RowError("no_prompt", field, "a completion without its prompt", "add the prompt before it")
    ids = _ended(ids, field, draft, finish_reason)
    try:
        messages = messages_of(ids, vocabulary, keep_ids=True)
    except RowError as error:
        raise RowError(error.kind, f"{field}.{error.field}", error.what, error.fix) from None
    starts = [i for i, id_ in enumerate(ids) if id_ == START]
    spans = [tuple(ids[a:b]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    size = 0
    while size < len(messages) and messages[size].role in ("system", "developer"):
        size += 1
    opening = messages[:size]
    for message in opening:
        block = parse_system(message.content) if str(message.role) == "system" else None
        if block is not None:
            draft.effort, draft.date, draft.identity = block.effort or draft.effort, block.date, block.identity
            draft.names.offer(block.builtin_tools)
        elif message.role == "developer":
            draft.instructions.append(message.content.removeprefix("# Instructions\n\n"))
    kept = tuple(_kept(m, span) for m, span in zip(messages[size:], spans[size:], strict=False))
    if not kept:
        raise RowError("no_dialogue", field, "no user and no assistant message", "write a user message and its answer")
    return draft.conversation(kept, opening_ids=tuple(id_ for span in spans[:size] for id_ in span))


def _kept(message: Message, span: tuple[int, ...]) -> Message:
    if message.role != "assistant":
        return replace(message, role=_role(message), raw_ids=span)
    raw = message.raw_ids or (END,)
    if message.is_final and raw[-1] == END:  # in a history a final ends so; as a target it ends the turn
        raw = (*raw[:-1], RETURN)
    return replace(message, raw_ids=raw)


def _role(message: Message) -> Role:
    return "developer" if str(message.role) == "system" else message.role


def _ended(ids: list[int], field: str, draft: Draft, finish_reason: Any) -> list[int]:
    """A server leaves out the stop token: it is written again where the finish reason says that there was one."""
    starts = [i for i, id_ in enumerate(ids) if id_ == START]
    last = ids[starts[-1] :] if starts else []
    if len(last) < 3 or last[-1] in (END, CALL, RETURN):
        return ids
    if finish_reason not in _STOPPED:
        raise RowError(
            "truncated", field, "the last message does not end", 'write it to its end, or finish_reason "stop"'
        )
    header = load_vocabulary().decode(last[: last.index(MESSAGE)] if MESSAGE in last else last)
    draft.notice("stop_added", field, "the stop token that the server left out was written again")
    return [*ids, CALL if " to=" in header else RETURN]


def _convert_messages(row: Mapping[str, Any], format: str, options: SourceOptions) -> Conversation:
    draft = Draft(format, options)
    read_declarations(draft, row, "")
    read_common(draft, row, DECLARATIONS | {"messages"})
    messages: list[Message] = []
    for i, value in enumerate(as_list(row.get("messages"), "messages")):
        field = f"messages[{i}]"
        item = as_object(value, field)
        author = item.get("author")
        role = item.get("role") or (author.get("role") if isinstance(author, Mapping) else None)
        if role in ("system", "developer") and _official(draft, item, field, first=not messages):
            continue
        text = content_text(item.get("content"), f"{field}.content", options, draft.notice)
        if text is None:
            raise RowError("no_content", f"{field}.content", "missing or null", "write a string")
        if role in ("system", "developer") and not messages:
            draft.opening_text(text, f"{field}.content")
        else:
            messages.append(_message(item, role, text, field))
        for key, extra in item.items():
            if key not in _MESSAGE and extra is not None:
                draft.unused(f"messages[].{key}", f"{field}.{key}", extra)
    if not messages:
        raise RowError("no_dialogue", "messages", "no user and no assistant message", "write a user message")
    return draft.conversation(tuple(messages))


def _message(item: Mapping[str, Any], role: Any, text: str, field: str) -> Message:
    author = item.get("author")
    name = text_of(item, "name", field) or (author.get("name") if isinstance(author, Mapping) else None)
    if role in ("user", "developer", "system"):
        return Message("user" if role == "user" else "developer", text, name=name)
    channel = item.get("channel")
    if channel not in CHANNELS:
        what = "missing" if channel is None else f"is {str(channel)[:40]!r}"
        raise RowError("bad_channel", f"{field}.channel", what, f"write {', '.join(CHANNELS)}")
    channel = cast(Channel, channel)
    content_type = text_of(item, "content_type", field)
    if role == "tool":
        if not name:
            raise RowError(
                "no_name", f"{field}.name", "missing: a tool's result names the tool", "write functions.NAME"
            )
        return Message("tool", text, channel, name=name, content_type=content_type)
    if role != "assistant":
        what = f"is {role[:40]!r}" if isinstance(role, str) else f"is {describe(role)}"
        raise RowError("unknown_role", f"{field}.role", what, "write system, developer, user, assistant or tool")
    recipient = text_of(item, "recipient", field)
    if recipient is not None and (not recipient or any(c.isspace() for c in recipient)):
        raise RowError("bad_recipient", f"{field}.recipient", f"is {recipient[:40]!r}", "write functions.NAME")
    if recipient in ("all", "assistant"):
        recipient = None
    weight = read_weight(item, field)
    return Message("assistant", text, channel, recipient, name, content_type, weight)


def _official(draft: Draft, item: Mapping[str, Any], field: str, first: bool) -> bool:
    """Reads openai-harmony's system and developer contents; False where the content is plain text."""
    content = item.get("content")
    parts = content if isinstance(content, list) else [content]
    found = [part for part in parts if isinstance(part, Mapping) and _is_official(part)]
    if not found:
        return False
    if not first:
        raise RowError("late_system", field, "a system block after the conversation began", "move it to the front")
    for part in found:
        effort = part.get("reasoning_effort")
        if effort is not None:
            draft.effort = read_effort(draft, effort, f"{field}.content.reasoning_effort")
        if isinstance(part.get("conversation_start_date"), str):
            draft.date = part["conversation_start_date"]
        if isinstance(part.get("model_identity"), str):
            draft.identity = part["model_identity"]
        if isinstance(part.get("instructions"), str):
            draft.instructions.append(part["instructions"])
        _declare(draft, part.get("tools"), f"{field}.content.tools")
    return True


def _is_official(part: Mapping[str, Any]) -> bool:
    if part.get("type") in ("system_content", "developer_content"):
        return True
    return "text" not in part and bool({"reasoning_effort", "instructions", "model_identity"} & set(part))


def _declare(draft: Draft, namespaces: Any, field: str) -> None:
    """`{"functions": {"tools": [...]}, "python": {...}}`."""
    if not isinstance(namespaces, Mapping):
        return
    for name, namespace in namespaces.items():
        if name in BUILTIN_TOOLS:
            draft.names.offer((name,))
        elif name == "functions" and isinstance(namespace, Mapping):
            read = read_tools(namespace.get("tools") or [], f"{field}.functions.tools")
            draft.notices.extend(read.notices)
            draft.declare(read.tools, (), f"{field}.functions.tools")
        else:
            draft.unused(f"tools.{name}", f"{field}.{name}", namespace)
