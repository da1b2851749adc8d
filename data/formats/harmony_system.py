"""Harmony's own system and developer texts, read back: rows that were rendered once carry them as plain strings."""

from __future__ import annotations

import re
from dataclasses import dataclass

from counterpoint.data.conversation import EFFORTS, Effort

OFFICIAL_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
_CUTOFF = re.compile(r"^Knowledge cutoff: .*$", re.MULTILINE)
_DATE = re.compile(r"^Current date: (\d{4}-\d\d-\d\d)$", re.MULTILINE)
_EFFORT = re.compile(r"^[Rr]easoning: *(low|medium|high)$", re.MULTILINE)
_CHANNELS = re.compile(r"^# Valid channels: .*$(?:\n^Calls to these tools must .*$)?", re.MULTILINE)
_SECTION = re.compile(r"^## (\S+)$", re.MULTILINE)
_TOOLS = re.compile(r"^# Tools$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SystemBlock:
    """The contents of a block.

    identity: None for OpenAI's sentence. date: "" where the block has none, None where only the effort is given.
    rest: what the other fields do not hold.
    """

    identity: str | None
    date: str | None
    effort: Effort | None
    builtin_tools: tuple[str, ...]
    rest: str


def parse_system(text: str) -> SystemBlock | None:
    """The block that `text` is; None where it is an ordinary system prompt."""
    if alone := _EFFORT.fullmatch(text.strip()):
        return SystemBlock(None, None, _effort(alone.group(1)), (), "")
    cutoff, effort, channels = _CUTOFF.search(text), _EFFORT.search(text), _CHANNELS.search(text)
    if not (channels or (cutoff and effort)):
        return None
    date = _DATE.search(text)
    pieces = [piece for piece in (cutoff, date, effort, channels) if piece is not None]
    head_end = min(piece.start() for piece in pieces)
    identity = text[:head_end].strip()
    tools_end = channels.start() if channels else head_end
    inside = _without(text[:tools_end], head_end, [p for p in pieces if p.end() <= tools_end])
    behind = _without(text, tools_end, [p for p in pieces if p.start() >= tools_end])
    builtin: list[str] = []
    if tools := _TOOLS.search(inside):
        kept, builtin = _split_tools(inside[tools.end() :])
        inside = inside[: tools.start()] + (f"# Tools{kept}" if kept.strip() else "")
    rest = f"{inside.strip()}\n\n{behind.strip()}"
    named = _effort(effort.group(1)) if effort else None
    return SystemBlock(
        identity=None if identity in ("", OFFICIAL_IDENTITY) else identity,
        date=date.group(1) if date else "",
        effort=named,
        builtin_tools=tuple(builtin),
        rest=rest.strip(),
    )


def _effort(name: str) -> Effort | None:
    return next((effort for effort in EFFORTS if effort == name), None)


def _without(text: str, start: int, pieces: list[re.Match[str]]) -> str:
    out, at = [], start
    for piece in sorted(pieces, key=lambda p: p.start()):
        out.append(text[at : piece.start()])
        at = piece.end()
    return "".join((*out, text[at:]))


def _split_tools(text: str) -> tuple[str, list[str]]:
    """The sections of other tools, and the names of the built-in ones."""
    starts = [found.start() for found in _SECTION.finditer(text)]
    kept = [text[: starts[0]] if starts else text]
    builtin: list[str] = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        section = text[start:end]
        name = section.split("\n", 1)[0].removeprefix("## ").strip()
        if name in ("python", "browser"):
            builtin.append(name)
        else:
            kept.append(section)
    return "".join(kept), builtin
