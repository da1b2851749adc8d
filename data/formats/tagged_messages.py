"""Texts on their way into a conversation: what is in tags, or spelled out, becomes thinking, calls, results, tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from counterpoint.data.formats.calls import has_tagged_calls, split_calls
from counterpoint.data.formats.draft import Call, Draft
from counterpoint.data.formats.roles import Speaker, is_speaker
from counterpoint.data.formats.tags import split_responses, split_tools
from counterpoint.data.formats.wrappers import Phase, holds_thinking, own_wrappers, split_said, unknown_markup
from counterpoint.data.harmony.tool_declarations import read_tools


def add_system(draft: Draft, text: str, field: str, name: str | None = None) -> None:
    """Tools in `<tools>` are declared, the rest are instructions. Raises RowError."""
    if "<tools>" not in text or "</tools>" not in text:
        draft.system(text, field, name)
        return
    rest, tools = split_tools(text, field, draft.notice)
    if tools:
        read = read_tools(tools, f"{field}<tools>", draft.options.tool_schemas)
        draft.notices.extend(read.notices)
        draft.declare(read.tools, read.builtin_tools, f"{field}<tools>")
    if rest or not tools:
        draft.system(rest, field, name)


def add_answer(
    draft: Draft,
    field: str,
    *,
    text: str | None,
    text_field: str,
    thinking: str | None = None,
    calls: Sequence[Call] = (),
    weight: float = 1.0,
    name: str | None = None,
    phase: Phase = None,
) -> None:
    """An assistant's message. Thinking and calls inside its text go after and before those given in fields of their
    own. Raises RowError."""
    if not text or not holds_markup(draft, text):
        if text and (tag := unknown_markup(text)) is not None:
            draft.notice("unknown_markup", text_field, f"begins with {tag}: trained as text; see data.think_tags")
        draft.assistant(
            field,
            thinking=thinking,
            text=text,
            calls=calls,
            weight=weight,
            name=name,
            text_field=text_field,
            phase=phase,
        )
        return
    said = split_said(text, text_field, draft.notice, own_wrappers(draft.options.think_tags))
    for number, piece in enumerate(said):
        rest, found = split_calls(piece.text, text_field, draft)
        last = number + 1 == len(said)
        both = (*found, *calls) if last else tuple(found)
        parts = (thinking, piece.thinking) if number == 0 else (piece.thinking,)
        thought = "\n\n".join(part for part in parts if part) or None
        empty = not rest.strip() and (both or thought or not last)
        if empty and not both and not thought:
            continue
        draft.assistant(
            text_field,
            thinking=thought,
            text=None if empty else rest,
            calls=both,
            weight=weight,
            name=name,
            text_field=text_field,
            phase=None if both else phase or piece.phase,
        )


def holds_markup(draft: Draft, text: str) -> bool:
    """Whether an assistant's text has to be taken apart."""
    return holds_thinking(text, own_wrappers(draft.options.think_tags)) or has_tagged_calls(text)


def add_responses(draft: Draft, text: str, field: str) -> bool:
    """Adds the results that a user's or tool's text holds; False where it holds none. Raises RowError."""
    responses = split_responses(text, field, draft.notice)
    for response in responses or ():
        draft.result(response.text, field, response.id, response.name)
    return responses is not None


def looks_tagged(messages: Any) -> bool:
    """Whether any text of a chat holds the tags of Hermes and Qwen."""
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        for text in texts_of(message):
            if "<" not in text:
                continue
            said = text.lstrip()
            speakers: list[Speaker] = []
            if said.startswith("<think>") or "</think>" in text or has_tagged_calls(text):
                speakers.append("assistant")
            if "<tools>" in text and "</tools>" in text:
                speakers.append("system")
            if said.startswith("<tool_response>"):
                speakers.extend(("user", "tool"))
            if any(is_speaker(message, speaker) for speaker in speakers):
                return True
    return False


def texts_of(message: dict[str, Any]) -> list[str]:
    """The texts of a message, as far as they are easily told."""
    value = next((message[key] for key in ("content", "value", "text") if message.get(key) is not None), None)
    parts = value if isinstance(value, list) else [value]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]
