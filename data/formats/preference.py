"""Pairs of answers as TRL has them: `prompt`, `chosen`, `rejected`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Preference
from counterpoint.data.formats.answers import read_pair
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list

_READ = frozenset({"prompt", "chosen", "rejected", "system"})


def looks_like(row: Mapping[str, Any]) -> bool:
    return "chosen" in row and "rejected" in row


def read(row: Mapping[str, Any], options: ConversionSettings) -> Preference:
    """`chosen` and `rejected` behind `prompt`, or behind the messages that both begin with. Raises RowError."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    prompt, answers = row.get("prompt"), [chosen, rejected]
    where = "prompt"
    if prompt is None:
        prompt, answers = _shared(chosen, rejected)
        where = "chosen"
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    prompt = as_list(prompt, where)
    if isinstance(chosen, list) and prompt and chosen[: len(prompt)] == prompt and len(chosen) > len(prompt):
        answers = [_after(chosen, prompt), _after(rejected, prompt)]
    if isinstance(row.get("system"), str):
        prompt = [{"role": "system", "content": row["system"]}, *prompt]

    def begin() -> Draft:
        draft = Draft("preference", options)
        read_declarations(draft, row, "")
        read_common(draft, row, DECLARATIONS | _READ)
        return draft

    both = {"chosen": answers[0], "rejected": answers[1]}
    return read_pair(begin, prompt, where, both, ("chosen", "rejected"))


def _shared(chosen: Any, rejected: Any) -> tuple[list[Any], list[Any]]:
    """The messages that both sides begin with, and what is left of each."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        fix = "write prompt, or chosen and rejected as messages"
        raise RowError("no_prompt", "prompt", "missing, and the answers are no messages", fix)
    size = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b or (isinstance(a, dict) and a.get("role") == "assistant" and _is_last(size, chosen, rejected)):
            break
        size += 1
    if not size:
        raise RowError("no_prompt", "chosen", "shares no message with rejected", "write prompt")
    return chosen[:size], [chosen[size:], rejected[size:]]


def _is_last(index: int, chosen: Sequence[Any], rejected: Sequence[Any]) -> bool:
    return index + 1 in (len(chosen), len(rejected))


def _after(answer: Any, prompt: list[Any]) -> Any:
    if isinstance(answer, list) and answer[: len(prompt)] == prompt:
        return answer[len(prompt) :]
    return answer
