"""Harmony messages with channels and recipients, as openai-harmony's `to_dict` writes them. Nothing is guessed.

Raw text and token ids are read by `counterpoint.data.formats.harmony_raw`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import CHANNELS, Channel, Conversation, Message
from counterpoint.data.formats.chat import chat_messages
from counterpoint.data.formats.common_fields import read_common, read_effort
from counterpoint.data.formats.content import content_text
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list, as_object, describe, text_of
from counterpoint.data.formats.harmony_raw import looks_raw, read_raw
from counterpoint.data.formats.loss_flags import MESSAGE_FLAGS, message_weight
from counterpoint.data.formats.meaning import ALL_THINKING_KEYS
from counterpoint.data.formats.thinking import thinking_of
from counterpoint.data.formats.tool_names import BUILTIN_TOOLS
from counterpoint.data.formats.wrappers import Said, holds_thinking, own_wrappers, split_said
from counterpoint.data.harmony.tool_declarations import read_tools

_MESSAGE = frozenset({"role", "name", "author", "content", "channel", "recipient", "content_type", *MESSAGE_FLAGS})


def looks_like(row: Mapping[str, Any]) -> bool:
    """A chat with channels or recipients, raw text, or ids."""
    messages = chat_messages(row)
    return any(names_channel(message) for message in messages) if messages is not None else looks_raw(row)


def names_channel(message: Any) -> bool:
    """Whether a message has what only Harmony's have: a channel or a recipient."""
    return isinstance(message, dict) and (message.get("channel") is not None or message.get("recipient") is not None)


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """A row of messages, of raw text (`text`, or `prompt` and `response`), or of ids. Raises RowError."""
    draft = Draft("harmony", options)
    return _read_messages(row, draft) if isinstance(row.get("messages"), list) else read_raw(row, draft)


def _read_messages(row: Mapping[str, Any], draft: Draft) -> Conversation:
    read_declarations(draft, row, "")
    read_common(draft, row, DECLARATIONS | {"messages"})
    messages: list[Message] = []
    for i, value in enumerate(as_list(row.get("messages"), "messages")):
        field = f"messages[{i}]"
        item = as_object(value, field)
        author = item.get("author")
        role = item.get("role") or (author.get("role") if isinstance(author, dict) else None)
        if role in ("system", "developer") and _official(draft, item, field, first=not messages):
            continue
        text = content_text(item.get("content"), f"{field}.content", draft.options, draft.notice)
        says = False
        if text is None:
            raise RowError("no_content", f"{field}.content", "missing or null", "write a string")
        if role in ("system", "developer") and not messages:
            draft.opening_text(text, f"{field}.content")
        else:
            message = _message(draft, item, role, text, field)
            says = message.role == "assistant" and message.channel != "analysis"
            messages += _thinking_apart(draft, item, message, field) if says else [message]
        for key, extra in item.items():
            if key not in _MESSAGE and extra is not None and not (says and key in ALL_THINKING_KEYS):
                draft.unused(f"messages[].{key}", f"{field}.{key}", extra)
    if not messages:
        raise RowError("no_dialogue", "messages", "no user and no assistant message", "write a user message")
    return draft.conversation(tuple(messages))


def _message(draft: Draft, item: Mapping[str, Any], role: Any, text: str, field: str) -> Message:
    author = item.get("author")
    name = text_of(item, "name", field) or (author.get("name") if isinstance(author, dict) else None)
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
    weight = message_weight(item, field, draft.notice)
    return Message("assistant", text, channel, recipient, name, content_type, weight)


def _thinking_apart(draft: Draft, item: Mapping[str, Any], message: Message, field: str) -> list[Message]:
    """An answer, preamble or call behind the chain of thought that its fields, or tags in its text, hold."""
    thinking, tags = thinking_of(draft, item, field), own_wrappers(draft.options.think_tags)
    said = [Said(None, message.content)]
    if not message.is_call and holds_thinking(message.content, tags):
        said = split_said(message.content, f"{field}.content", draft.notice, tags)
    out: list[Message] = []
    for number, piece in enumerate(said):
        thoughts = [text for text in (thinking if not number else None, piece.thinking) if text]
        if thoughts:
            out.append(Message("assistant", "\n\n".join(thoughts), "analysis", weight=message.weight))
        last = number + 1 == len(said)
        if piece.text or last:
            channel = message.channel if last else "commentary"
            out.append(replace(message, content=piece.text, channel=channel))
    return out


def _official(draft: Draft, item: Mapping[str, Any], field: str, first: bool) -> bool:
    """Reads openai-harmony's system and developer contents; False where the content is plain text."""
    content = item.get("content")
    parts = content if isinstance(content, list) else [content]
    found = [part for part in parts if isinstance(part, dict) and _is_official(part)]
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
    if not isinstance(namespaces, dict):
        return
    for name, namespace in namespaces.items():
        if name in BUILTIN_TOOLS:
            draft.names.offer((name,))
        elif name == "functions" and isinstance(namespace, dict):
            read = read_tools(namespace.get("tools") or [], f"{field}.functions.tools", draft.options.tool_schemas)
            draft.notices.extend(read.notices)
            draft.declare(read.tools, (), f"{field}.functions.tools")
        else:
            draft.unused(f"tools.{name}", f"{field}.{name}", namespace)
