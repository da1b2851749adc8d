"""Texts with tags (Hermes, Qwen) on their way into a conversation: they become thinking, calls, results, tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from counterpoint.data.formats.draft import Call, Draft
from counterpoint.data.formats.tags import has_tags, split_assistant, split_responses, split_tools
from counterpoint.data.harmony.tool_declarations import read_tools


def add_tagged_system(draft: Draft, text: str, field: str, name: str | None = None) -> None:
    """Tools are declared, the rest are instructions. Raises RowError."""
    rest, tools = split_tools(text, field, draft.notice)
    if tools:
        read = read_tools(tools, f"{field}<tools>", draft.options.tool_schemas)
        draft.notices.extend(read.notices)
        draft.declare(read.tools, read.builtin_tools, f"{field}<tools>")
    if rest or not tools:
        draft.system(rest, field, name)


def add_tagged_assistant(
    draft: Draft,
    text: str,
    field: str,
    *,
    thinking: str | None = None,
    calls: Sequence[Call] = (),
    weight: float = 1.0,
    name: str | None = None,
) -> None:
    """Thinking and calls are extracted from the text, and follow those given in fields of their own. Raises
    RowError."""
    split = split_assistant(text, field, draft.notice)
    both = (*split.calls, *calls)
    thinking = "\n\n".join(part for part in (thinking, split.thinking) if part) or None
    empty = not split.text.strip() and (both or thinking)
    draft.assistant(
        field,
        thinking=thinking,
        text=None if empty else split.text,
        calls=both,
        weight=weight,
        name=name,
        text_field=field,
    )


def add_responses(draft: Draft, text: str, field: str) -> bool:
    """Adds the results that a user's or tool's text holds; False where it holds none. Raises RowError."""
    responses = split_responses(text, field, draft.notice)
    for response in responses or ():
        draft.result(response.text, field, response.id, response.name)
    return responses is not None


def looks_tagged(messages: Any) -> bool:
    """Whether any text of a chat (`role`/`content` or `from`/`value`) holds such tags."""
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        role, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(text, str):
            continue
        if role in ("assistant", "gpt") and has_tags(text):
            return True
        if role == "system" and "<tools>" in text and "</tools>" in text:
            return True
        if role in ("tool", "user", "human") and text.lstrip().startswith("<tool_response>"):
            return True
    return False
