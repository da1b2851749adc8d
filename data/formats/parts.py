"""Contents that are more than text: parts of any vendor with thinking, calls and results among the text.

Anthropic's blocks (https://docs.anthropic.com/en/api/messages), Gemini's `parts`, the AI SDK's `tool-call`,
LLaMA-Factory's `value`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.calls import ARGUMENTS, calls_of_value, id_of, read_call
from counterpoint.data.formats.content import TEXT_TYPES, content_text, media_name, part_text
from counterpoint.data.formats.draft import Call, Draft
from counterpoint.data.formats.fields import as_object, as_text, describe, join, one_of
from counterpoint.data.formats.tagged_messages import add_answer
from counterpoint.data.formats.thinking import part_thinking
from counterpoint.data.formats.wrappers import Phase
from counterpoint.data.rows.strict_json import dumps

THINKING = frozenset(
    {"thinking", "redacted_thinking", "reasoning", "reasoning_text", "thought", "reasoning.text", "reasoning.encrypted"}
)
CALLS = frozenset({"tool_use", "tool_call", "tool-call", "function_call", "functionCall"})
RESULTS = frozenset({"tool_result", "tool-result", "tool_response", "function_call_output", "functionResponse"})
_RESULT_IDS = ("tool_use_id", "tool_call_id", "toolCallId", "call_id", "id")
_RESULT_TEXTS = ("content", "output", "result", "response", "value")


def kind_of_part(part: Any) -> str:
    """`text` (media too), `thinking`, `call` or `result`."""
    if not isinstance(part, dict):
        return "text"
    kind = part.get("type")
    if one_of(kind, THINKING) or (part.get("thought") is True and "text" in part):
        return "thinking"
    if one_of(kind, CALLS) or (kind is None and isinstance(part.get("functionCall"), dict)):
        return "call"
    if one_of(kind, RESULTS) or (kind is None and isinstance(part.get("functionResponse"), dict)):
        return "result"
    return "text"


def has_blocks(content: Any) -> bool:
    """Whether a content has parts that are no text."""
    parts = content if isinstance(content, list) else [content]
    return any(kind_of_part(part) != "text" for part in parts)


def result_text(value: Any, field: str, draft: Draft) -> str | None:
    """The text of a tool's result; None where it is absent. What is no text is written as JSON."""
    if value is None or isinstance(value, str):
        return value
    if value == [] or all(_is_text(part) for part in (value if isinstance(value, list) else [value])):
        return content_text(value, field, draft.options, draft.notice)
    draft.notice("object_result", field, f"a result that is {describe(value)} was written as JSON text")
    return dumps(value)


def _is_text(part: Any) -> bool:
    if not isinstance(part, dict):
        return isinstance(part, str)
    kind = part.get("type")
    return (
        one_of(kind, TEXT_TYPES) or (kind is None and "text" in part and len(part) == 1) or media_name(part) is not None
    )


def add_result(draft: Draft, part: Mapping[str, Any], field: str) -> None:
    """A part that holds a tool's result. Raises RowError."""
    inner = part.get("functionResponse")
    if isinstance(inner, dict):
        part, field = inner, f"{field}.functionResponse"
    key = next((key for key in _RESULT_TEXTS if part.get(key) is not None), "content")
    value = part.get(key)
    if isinstance(value, dict) and value.keys() == {"type", "value"}:  # the AI SDK's
        value = value["value"]
    text = result_text(value, f"{field}.{key}", draft)
    id_key = next((key for key in _RESULT_IDS if part.get(key) is not None), None)
    name = next((part[key] for key in ("name", "toolName") if isinstance(part.get(key), str)), None)
    if id_key is None and name is None:
        raise RowError(
            "wrong_type", f"{field}.tool_use_id", "missing or null", "write the id of the call that it answers"
        )
    id_ = as_text(part[id_key], f"{field}.{id_key}") if id_key else None
    draft.result(text or "", f"{field}.{key}", id_, name)
    if part.get("is_error") is True or part.get("isError") is True:
        draft.metadata[f"{field}.is_error"] = True
        draft.notice("is_error", f"{field}.is_error", "kept as metadata: Harmony has no mark for a failed call")


def add_user_parts(draft: Draft, parts: list[Any], field: str, name: str | None) -> None:
    """Results in their place; texts that follow each other are one message."""
    texts: list[str] = []

    def flush() -> None:
        if texts:
            if len(texts) > 1:
                draft.notice("joined_parts", field, f"{len(texts)} text blocks were joined")
            draft.user("".join(texts), field, name)
            texts.clear()

    for i, part in enumerate(parts):
        where = f"{field}[{i}]"
        if kind_of_part(part) == "result":
            flush()
            add_result(draft, as_object(part, where), where)
        else:
            texts.append(part_text(part, where, draft.options, draft.notice))
    flush()


def add_assistant_parts(
    draft: Draft,
    parts: list[Any],
    field: str,
    *,
    thinking: str | None,
    calls: list[Call],
    weight: float,
    name: str | None,
) -> None:
    """Thinking begins a new message of the turn, so that interleaved thinking keeps its place. thinking, calls: of the
    message's other fields."""
    groups: list[_Group] = [_Group(field)]
    results: list[tuple[Mapping[str, Any], str]] = []
    for i, part in enumerate(parts):
        where = f"{field}[{i}]"
        kind = kind_of_part(part)
        if kind == "thinking":
            if groups[-1].texts or groups[-1].calls:
                groups.append(_Group(where))
            text = part_thinking(draft, as_object(part, where), where)
            if text:
                groups[-1].thinking.append(text)
        elif kind == "call":
            groups[-1].calls += _calls(as_object(part, where), where)
        elif kind == "result":
            results.append((as_object(part, where), where))
        else:
            if groups[-1].calls:
                groups.append(_Group(where))
            groups[-1].texts.append(part_text(part, where, draft.options, draft.notice))
    if thinking and thinking.strip() not in ("\n\n".join(group.thinking).strip() for group in groups):
        groups[0].thinking.insert(0, thinking)
    known = {call.id for group in groups for call in group.calls if call.id is not None}
    groups[-1].calls += [call for call in calls if call.id is None or call.id not in known]
    for i, group in enumerate(groups):
        later_calls = any(other.calls for other in groups[i + 1 :])
        group.add(draft, weight, name, "commentary" if later_calls and not group.calls else None)
    for part, where in results:
        add_result(draft, part, where)


def _calls(part: Mapping[str, Any], field: str) -> list[Call]:
    inner = part.get("functionCall")
    if isinstance(inner, dict):
        name = as_text(inner.get("name"), f"{field}.functionCall.name")
        return [Call(name, inner.get("args"), field, None, f"{field}.functionCall.args", native=True)]
    if part.get("value") is not None and not any(part.get(key) is not None for key in ("name", "toolName")):
        return calls_of_value(part["value"], f"{field}.value")
    if isinstance(part.get("function"), dict):
        return [read_call(part, field)]
    key = "toolName" if part.get("toolName") is not None else "name"
    name = as_text(part.get(key), join(field, key))
    arguments = next((key for key in ("input", *ARGUMENTS) if part.get(key) is not None), "input")
    return [Call(name, part.get(arguments), field, id_of(part, field), f"{field}.{arguments}", native=True)]


class _Group:
    """Parts of one Harmony action: thinking, then text, then calls."""

    def __init__(self, field: str) -> None:
        self.field = field
        self.thinking: list[str] = []
        self.texts: list[str] = []
        self.calls: list[Call] = []

    def add(self, draft: Draft, weight: float, name: str | None, phase: Phase) -> None:
        if not (self.thinking or self.texts or self.calls):
            return
        add_answer(
            draft,
            self.field,
            thinking="\n\n".join(part for part in self.thinking if part.strip()) or None,
            text="".join(self.texts) if self.texts else None,
            calls=self.calls,
            weight=weight,
            name=name,
            text_field=self.field,
            phase=phase,
        )
