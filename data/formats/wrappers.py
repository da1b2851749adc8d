"""Reasoning inside an assistant's text: in tags that are known, spelled out as Harmony, or behind words of Harmony
whose control tokens were lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.call_pairing import AddNotice

Phase = Literal["commentary", "final"] | None

THINK = ("<think>", "</think>")
WRAPPERS = (
    THINK,
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)
_ANSWERS = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)
_COLLAPSED = re.compile(r"\s*(?:assistant)?analysis(?=\S)(.*?)assistantfinal(.*)\Z", re.DOTALL)
_COLLAPSED_CALL = re.compile(r"\s*(?:assistant)?(?:analysis(?=\S).*?assistant)?commentary to=\S+.*", re.DOTALL)
_RENDERED = re.compile(r"\s*(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary|final)\b")
_PIECE = re.compile(
    r"\s*(?:<\|start\|>assistant)?<\|channel\|>(analysis|commentary|final)<\|message\|>(.*?)"
    r"(?:<\|end\|>|<\|return\|>|\Z)",
    re.DOTALL,
)
_MARKUP = re.compile(r"\s*(?:<([A-Za-z_][\w:-]*)>|\[([A-Z_]+)\]|<\|([\w]+)\|>)")
_ORDINARY = re.compile(
    r"(?i)a|abbr|article|b|blockquote|body|br|button|center|circle|code|details|div|em|figure|footer|form|h[1-6r]|head"
    r"|header|html|i|img|input|kbd|li|link|main|math|nav|ol|p|path|pre|root|script|section|small|span|strong|style|sub"
    r"|summary|sup|svg|table|tbody|td|template|th|thead|title|tr|u|ul|video|xml"
)


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an assistant's text: thinking, then what is said after it. phase: where the source names a channel."""

    thinking: str | None
    text: str
    phase: Phase = None


def own_wrappers(tags: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The settings `think_tags` as pairs: `<x>` is closed by `</x>`, `[X]` by `[/X]`, and a pair is written with a
    space between."""
    pairs: list[tuple[str, str]] = []
    for tag in tags:
        opening, _, closing = tag.partition(" ")
        pairs.append((opening, closing or f"{opening[0]}/{opening[1:]}"))
    return tuple(pairs)


def wrapper_of(text: str, own: Sequence[tuple[str, str]] = ()) -> tuple[str, str] | None:
    """The tags around the thinking that a text begins with; a tag that is not closed counts for `<think>` and for those
    of the settings only."""
    start = text.lstrip()
    for opening, closing in (*own, *WRAPPERS):
        if start.startswith(opening) and (closing in start or (opening, closing) == THINK or (opening, closing) in own):
            return opening, closing
    return None


def holds_thinking(text: str, own: Sequence[tuple[str, str]] = ()) -> bool:
    """Whether an assistant's text is anything but an answer alone."""
    if wrapper_of(text, own) or THINK[1] in text or _RENDERED.match(text):
        return True
    return "assistant" in text and bool(_COLLAPSED.match(text) or _COLLAPSED_CALL.fullmatch(text))


def split_said(text: str, field: str, notice: AddNotice, own: Sequence[tuple[str, str]] = ()) -> list[Said]:
    """What an assistant's text says, thinking apart, in its order. Raises RowError where it cannot be told."""
    if _RENDERED.match(text):
        return _rendered(text, field, notice)
    if found := _COLLAPSED.match(text):
        notice("collapsed_harmony", field, "Harmony without its control tokens: read as analysis and final")
        return [Said(found.group(1).strip("\n"), found.group(2))]
    if _COLLAPSED_CALL.fullmatch(text):
        what = "Harmony without its control tokens, with a call"
        raise RowError("collapsed_harmony", field, what, "log with skip_special_tokens=False, or as tool_calls")
    wrapper = wrapper_of(text, own)
    if wrapper is None:
        return [_without_opening(text, field, notice)]
    said: list[Said] = []
    rest = text.lstrip()
    while True:
        opening, closing = wrapper
        if not rest.startswith(opening):  # text, then a further thought
            before, _, rest = rest.partition(opening)
            said[-1] = Said(said[-1].thinking, said[-1].text + before.strip("\n"))
            rest = opening + rest
        if closing not in rest:
            raise RowError("unclosed_tag", field, f"{opening} is not closed", f"write {closing} before the answer")
        thinking, _, rest = rest.removeprefix(opening).partition(closing)
        if not thinking.strip():
            notice("empty_thinking", field, "empty thinking was left out")
            said.append(Said(None, ""))
            rest = rest.strip("\n")
        else:
            said.append(Said(thinking.strip("\n"), ""))
            rest = rest.lstrip("\n")
        if not (opening in rest and closing in rest.partition(opening)[2]):
            break
    said[-1] = Said(said[-1].thinking, _answer(rest, field, notice))
    if len(said) > 1:
        notice("several_thoughts", field, f"{len(said)} thoughts: the text between them was written on commentary")
        said = [Said(one.thinking, one.text, "commentary" if one.text.strip() else None) for one in said[:-1]] + said[
            -1:
        ]
    return said


def unknown_markup(text: str) -> str | None:
    """The tag that an assistant's text begins with and closes, where it is no known one and no HTML."""
    found = _MARKUP.match(text)
    if found is None:
        return None
    tag, bracket, token = found.groups()
    if token or (bracket and f"[/{bracket}]" in text):
        return found.group().strip()
    return found.group().strip() if tag and not _ORDINARY.fullmatch(tag) and f"</{tag}>" in text else None


def _without_opening(text: str, field: str, notice: AddNotice) -> Said:
    """Text in front of a `</think>` alone: servers that write the opening tag into the prompt log so."""
    opening, closing = THINK
    if closing not in text or opening in text:
        return Said(None, text)
    thinking, _, rest = text.partition(closing)
    notice("open_think", field, "</think> without <think>: the text before it was taken as thinking")
    if not thinking.strip():
        notice("empty_thinking", field, "empty thinking was left out")
        return Said(None, rest.strip("\n"))
    return Said(thinking.strip("\n"), rest.lstrip("\n"))


def _answer(text: str, field: str, notice: AddNotice) -> str:
    """The answer out of tags that are around all of it."""
    bare = text.strip()
    for opening, closing in _ANSWERS:
        if bare.startswith(opening) and bare.endswith(closing) and bare.count(opening) == 1:
            notice("answer_tags", field, f"the answer was taken out of {opening}")
            return bare.removeprefix(opening).removesuffix(closing).strip("\n")
    return text


def _rendered(text: str, field: str, notice: AddNotice) -> list[Said]:
    said: list[Said] = []
    thinking: str | None = None
    at = 0
    while at < len(text.rstrip()):
        found = _PIECE.match(text, at)
        if found is None or "<|" in found.group(2):
            what = "rendered Harmony, with a call or damaged"
            raise RowError("rendered_harmony", field, what, "write it as `text` of a row (format harmony)")
        channel, body = found.groups()
        if channel == "analysis":
            thinking = body if thinking is None else f"{thinking}\n\n{body}"
        else:
            said.append(Said(thinking, body, "commentary" if channel == "commentary" else "final"))
            thinking = None
        at = found.end()
    if thinking is not None:
        said.append(Said(thinking, ""))
    notice("rendered_harmony", field, "rendered Harmony in a content was read as the messages that it is")
    return said
