"""Chat messages with roles: OpenAI's, and what Hugging Face data sets and servers made of them.

One reader serves the formats `openai`, `messages` and `hermes`, which differ in what their messages hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.common_fields import read_common, read_weight
from counterpoint.data.formats.content import content_text, media
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations
from counterpoint.data.formats.draft import Call, Draft
from counterpoint.data.formats.fields import as_list, as_object, as_text, describe, join, text_of
from counterpoint.data.formats.tagged_messages import add_responses, add_tagged_assistant, add_tagged_system

MESSAGE_KEYS = ("messages", "traj", "history", "conversation")
THINKING_KEYS = ("thinking", "reasoning_content", "reasoning")
_ROLES = "system, developer, user, assistant, tool or function"
_CALL = frozenset({"id", "type", "index", "function", "custom", "name", "arguments", "parameters"})
_READ = frozenset(
    {
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "tool_call_ids",
        "function_call",
        "weight",
        "refusal",
        "audio",
        *THINKING_KEYS,
    }
)


def chat_messages(row: Mapping[str, Any]) -> list[Any] | None:
    """The messages of a row, to detect its chat format; None where it is no chat."""
    messages = row.get("messages")
    if isinstance(messages, list):
        return messages
    for key in (*MESSAGE_KEYS, "conversations"):
        if key in row and holds_messages(row, key):
            return row[key]
    return None


def holds_messages(row: Mapping[str, Any], key: str) -> bool:
    """Whether a field is a list of messages; `history` and the like may be lists of other things."""
    value = row.get(key)
    return isinstance(value, list) and (key == "messages" or (bool(value) and isinstance(value[0], dict)))


def read_chat(row: Mapping[str, Any], draft: Draft, tags: bool = False) -> Conversation:
    """A row with `messages` (or `traj`, `history`, `conversation`) and optional `tools`. tags: texts hold Hermes tags.

    Raises RowError.
    """
    key = next((k for k in MESSAGE_KEYS if holds_messages(row, k)), "messages")
    read_declarations(draft, row, "")
    read_common(draft, row, DECLARATIONS | {key}, quiet=is_prompt(row.get(key)))
    add_messages(draft, row.get(key), key, tags=tags)
    return draft.finish()


def is_prompt(messages: Any) -> bool:
    """Whether messages end in a user's: reinforcement rows, whose other fields are references for the grader."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "user"


def add_messages(draft: Draft, messages: Any, field: str, tags: bool = False) -> None:
    """Adds every message of `messages` to the draft. tags: texts hold Hermes tags. Raises RowError."""
    if not as_list(messages, field):
        raise RowError("no_messages", field, "is an empty list", "write a user message and its answer")
    for i, message in enumerate(messages):
        add_message(draft, as_object(message, f"{field}[{i}]"), f"{field}[{i}]", tags)


def add_message(draft: Draft, message: Mapping[str, Any], field: str, tags: bool = False) -> None:
    role = message.get("role")
    if role is None:
        raise RowError("no_role", join(field, "role"), "missing", f"write {_ROLES}")
    name = text_of(message, "name", field)
    if role == "assistant":
        _assistant(draft, message, field, name, tags)
    else:
        _other(draft, message, field, role, name, tags)
        if message.get("weight") is not None:
            draft.notice("weight_ignored", f"{field}.weight", f"a {role} message is never trained")
    for key, value in message.items():
        if key not in _READ and value is not None:
            draft.unused(f"messages[].{key}", f"{field}.{key}", value)


def _other(draft: Draft, message: Mapping[str, Any], field: str, role: Any, name: str | None, tags: bool) -> None:
    if role not in ("system", "developer", "user", "tool", "function"):
        what = f"an unknown role {role[:40]!r}" if isinstance(role, str) else f"is {describe(role)}"
        raise RowError("unknown_role", f"{field}.role", what, f"write {_ROLES}")
    where = f"{field}.content"
    text = content_text(message.get("content"), where, draft.options, draft.notice)
    if text is None:
        raise RowError("no_content", where, "missing or null", "write a string")
    if role in ("system", "developer"):
        (add_tagged_system if tags else Draft.system)(draft, text, where, name)
    elif tags and add_responses(draft, text, where):
        pass
    elif role == "user":
        draft.user(text, where, name)
    elif role == "tool":
        draft.result(text, where, _result_id(message, field), name)
    elif not name:
        raise RowError("no_name", f"{field}.name", "missing: a function's result names it", "write its name")
    else:
        draft.result(text, where, name=name)


def _assistant(draft: Draft, message: Mapping[str, Any], field: str, name: str | None, tags: bool) -> None:
    thinking = thinking_of(draft, message, field)
    text = content_text(message.get("content"), f"{field}.content", draft.options, draft.notice)
    refusal = text_of(message, "refusal", field)
    if refusal:
        draft.notice("refusal", f"{field}.refusal", "a refusal was taken as the answer")
        text = f"{text or ''}{refusal}"
    if message.get("audio") is not None:
        spoken = media("audio", f"{field}.audio", draft.options, draft.notice)
        text = text or spoken
    calls = _calls(draft, message, field)
    if text is None and not calls and thinking is None:
        fix = "write the answer in content, or the calls in tool_calls"
        raise RowError("no_content", f"{field}.content", "an assistant message without content and calls", fix)
    weight = read_weight(message, field)
    if tags and text:
        where = f"{field}.content"
        add_tagged_assistant(draft, text, where, thinking=thinking, calls=calls, weight=weight, name=name)
        return
    draft.assistant(field, thinking=thinking, text=text, calls=calls, weight=weight, name=name)


def thinking_of(draft: Draft, message: Mapping[str, Any], field: str) -> str | None:
    """The chain of thought next to the content, whichever key holds it."""
    found: str | None = None
    for key in THINKING_KEYS:
        value = message.get(key)
        if value is None:
            continue
        text = value if isinstance(value, str) else content_text(value, f"{field}.{key}", draft.options, draft.notice)
        if not text or not text.strip():
            draft.notice("empty_thinking", f"{field}.{key}", "empty thinking was left out")
        elif found is not None and found != text:
            raise RowError(
                "two_thinkings", f"{field}.{key}", "a second, different chain of thought", "keep one of them"
            )
        else:
            found = text
    return found


def _result_id(message: Mapping[str, Any], field: str) -> str | None:
    ids = message.get("tool_call_ids")
    if message.get("tool_call_id") is None and isinstance(ids, list) and len(ids) == 1:
        return as_text(ids[0], f"{field}.tool_call_ids[0]")
    return text_of(message, "tool_call_id", field)


def _calls(draft: Draft, message: Mapping[str, Any], field: str) -> list[Call]:
    calls: list[Call] = []
    legacy = message.get("function_call")
    if legacy is not None:
        calls.append(_function_call(as_object(legacy, f"{field}.function_call"), f"{field}.function_call", None))
    listed = message.get("tool_calls")
    if listed is None:
        return calls
    where = f"{field}.tool_calls"
    for i, item in enumerate(as_list(listed, where)):
        item = as_object(item, f"{where}[{i}]")
        unused_call_fields(draft, item, f"{where}[{i}]")
        calls.append(read_call(item, f"{where}[{i}]"))
    return calls


def unused_call_fields(draft: Draft, item: Mapping[str, Any], field: str) -> None:
    for key, value in item.items():
        if key not in _CALL and value is not None:
            draft.unused(f"tool_calls[].{key}", f"{field}.{key}", value)


def read_call(item: Mapping[str, Any], field: str) -> Call:
    """One entry of `tool_calls`: OpenAI's nested one, a custom tool's, or a flat `{name, arguments}`."""
    id_ = text_of(item, "id", field)
    if item.get("custom") is not None:
        custom = as_object(item["custom"], f"{field}.custom")
        name = as_text(custom.get("name"), f"{field}.custom.name")
        text = as_text(custom.get("input"), f"{field}.custom.input")
        return Call(name, text, field, id_, f"{field}.custom.input", custom=True)
    if item.get("function") is not None:
        return _function_call(as_object(item["function"], f"{field}.function"), f"{field}.function", id_)
    if item.get("name") is not None:
        return _function_call(item, field, id_)
    raise RowError("bad_call", f"{field}.function", "missing", 'write {"name": "...", "arguments": "{...}"}')


def _function_call(function: Mapping[str, Any], field: str, id_: str | None) -> Call:
    name = as_text(function.get("name"), f"{field}.name")
    arguments = function.get("arguments", function.get("parameters"))
    return Call(name, arguments, field, id_, f"{field}.arguments")
