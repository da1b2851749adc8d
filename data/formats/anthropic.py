"""Anthropic's Messages API: content blocks, a top-level `system`, tools with `input_schema`.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.chat import chat_messages, is_prompt
from counterpoint.data.formats.common_fields import read_common, read_weight
from counterpoint.data.formats.content import content_text, part_text
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations
from counterpoint.data.formats.draft import Call, Draft
from counterpoint.data.formats.fields import as_list, as_object, as_text, describe, one_of, text_of

THINKING_BLOCKS = frozenset({"thinking", "redacted_thinking"})
TOOL_BLOCKS = frozenset({"tool_use", "tool_result"})


def looks_like(row: Mapping[str, Any]) -> bool:
    """A chat with blocks, a top-level `system`, or tools with `input_schema`."""
    messages, tools = chat_messages(row), row.get("tools")
    if messages is None:
        return False
    if isinstance(row.get("system"), (str, list)) or any(_has_blocks(message) for message in messages):
        return True
    return isinstance(tools, list) and any(isinstance(tool, dict) and "input_schema" in tool for tool in tools)


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """`system`, `messages`, `tools`, as the API takes them. Raises RowError."""
    draft = Draft("anthropic", options)
    read_declarations(draft, row, "")
    read_common(draft, row, DECLARATIONS | {"system", "messages"}, quiet=is_prompt(row.get("messages")))
    system = content_text(row.get("system"), "system", options, draft.notice)
    if system is not None:
        draft.system(system, "system")
    messages = as_list(row.get("messages"), "messages")
    for i, message in enumerate(messages):
        field = f"messages[{i}]"
        message = as_object(message, field)
        add_block_message(draft, message, field)
        for key, value in message.items():
            if key not in ("role", "content", "weight") and value is not None:
                draft.unused(f"messages[].{key}", f"{field}.{key}", value)
    return draft.finish()


def add_block_message(draft: Draft, message: Mapping[str, Any], field: str) -> None:
    """A user's or assistant's message, its content a text or a list of blocks. Raises RowError."""
    role = message.get("role")
    content = message.get("content")
    where = f"{field}.content"
    if role in ("system", "developer"):
        draft.system(content_text(content, where, draft.options, draft.notice) or "", where)
        return
    if role not in ("user", "assistant"):
        what = f"is {role[:40]!r}" if isinstance(role, str) else f"is {describe(role)}"
        raise RowError("unknown_role", f"{field}.role", what, "write user or assistant")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else as_list(content, where)
    if not blocks:
        raise RowError("no_content", where, "is an empty list", "write a text block")
    if role == "user":
        _user(draft, blocks, where)
    else:
        _assistant(draft, blocks, where, read_weight(message, field))


def _user(draft: Draft, blocks: list[Any], field: str) -> None:
    """Results first or in their place; texts that follow each other are one message."""
    texts: list[str] = []

    def flush() -> None:
        if texts:
            if len(texts) > 1:
                draft.notice("joined_parts", field, f"{len(texts)} text blocks were joined")
            draft.user("".join(texts), field)
            texts.clear()

    for i, block in enumerate(blocks):
        where = f"{field}[{i}]"
        block = as_object(block, where)
        if block.get("type") != "tool_result":
            texts.append(part_text(block, where, draft.options, draft.notice))
            continue
        flush()
        text = content_text(block.get("content"), f"{where}.content", draft.options, draft.notice)
        draft.result(text or "", f"{where}.content", as_text(block.get("tool_use_id"), f"{where}.tool_use_id"))
        if block.get("is_error") is True:
            draft.metadata[f"{where}.is_error"] = True
            draft.notice("is_error", f"{where}.is_error", "kept as metadata: Harmony has no mark for a failed call")
    flush()


def _assistant(draft: Draft, blocks: list[Any], field: str, weight: float) -> None:
    """Thinking begins a new message of the turn, so that interleaved thinking keeps its place."""
    groups: list[_Group] = [_Group(field)]
    for i, block in enumerate(blocks):
        where = f"{field}[{i}]"
        block = as_object(block, where)
        kind = block.get("type")
        if one_of(kind, THINKING_BLOCKS):
            if groups[-1].texts or groups[-1].calls:
                groups.append(_Group(where))
            if kind == "redacted_thinking":
                draft.notice("redacted_thinking", where, "encrypted thinking was left out")
            else:
                groups[-1].thinking.append(as_text(block.get("thinking"), f"{where}.thinking"))
        elif kind == "tool_use":
            name = as_text(block.get("name"), f"{where}.name")
            groups[-1].calls.append(
                Call(name, block.get("input"), where, text_of(block, "id", where), f"{where}.input", native=True)
            )
        else:
            if groups[-1].calls:
                groups.append(_Group(where))
            groups[-1].texts.append(part_text(block, where, draft.options, draft.notice))
    for i, group in enumerate(groups):
        later_calls = any(other.calls for other in groups[i + 1 :])
        group.add(draft, weight, "commentary" if later_calls and not group.calls else None)


class _Group:
    """Blocks of one Harmony action: thinking, then text, then calls."""

    def __init__(self, field: str) -> None:
        self.field = field
        self.thinking: list[str] = []
        self.texts: list[str] = []
        self.calls: list[Call] = []

    def add(self, draft: Draft, weight: float, phase: Literal["commentary"] | None) -> None:
        if not (self.thinking or self.texts or self.calls):
            return
        draft.assistant(
            self.field,
            thinking="\n\n".join(part for part in self.thinking if part.strip()) or None,
            text="".join(self.texts) if self.texts else None,
            calls=self.calls,
            weight=weight,
            text_field=self.field,
            phase=phase,
        )


def _has_blocks(message: Any) -> bool:
    """Whether a message has content parts that only Anthropic's API has."""
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, list) and any(
        isinstance(part, dict) and one_of(part.get("type"), THINKING_BLOCKS | TOOL_BLOCKS) for part in content
    )
