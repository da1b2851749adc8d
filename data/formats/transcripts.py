"""Chats that are one text: HH-RLHF's `Human:` and `Assistant:`, `### Human:`, ChatML, Llama 3's headers."""

from __future__ import annotations

import re
from typing import Any

from counterpoint.data.formats.roles import speaker_named

_TALK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")
_HEADED = re.compile(r"(?:\A\s*|\n)### ?(System|Human|User|Assistant)\s?:[ ]?")
_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n?|\Z)", re.DOTALL)
_LLAMA = re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)(?:<\|eot_id\|>|\Z)", re.DOTALL)
_OPENINGS = ("<|begin_of_text|>",)


def transcript(text: str) -> list[dict[str, Any]] | None:
    """The messages of a text that is a whole chat; None where it is none, or where it does not begin as one."""
    bare = text.removeprefix(_OPENINGS[0])
    for pattern in (_CHATML, _LLAMA):
        if bare.lstrip().startswith(("<|im_start|>", "<|start_header_id|>")) and (found := pattern.findall(bare)):
            return _checked([(role, content) for role, content in found])
    for pattern in (_TALK, _HEADED):
        pieces = pattern.split(text)
        if len(pieces) >= 3 and not pieces[0].strip():
            pairs = list(zip(pieces[1::2], pieces[2::2], strict=True))
            return _checked([(role, content.strip()) for role, content in pairs])
    return None


def _checked(said: list[tuple[str, str]]) -> list[dict[str, Any]] | None:
    """The messages where a user speaks; without a last one of the assistant that says nothing yet."""
    if speaker_named(said[-1][0]) == "assistant" and not said[-1][1].strip():
        said = said[:-1]
    if not any(speaker_named(role) == "user" for role, _ in said) or None in (speaker_named(role) for role, _ in said):
        return None
    return [{"role": role.lower(), "content": content} for role, content in said]
