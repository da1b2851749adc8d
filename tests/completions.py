"""Completions with a known verdict, from tests/golden: `malformed_completions.jsonl` and `valid_completions.jsonl`.

In a malformed one `§` stands before each token at which something is told (it is no part of the completion), and
`codes` has a list of codes for each `§`. Names of special tokens are those tokens; with a zero-width space after the
`<` they are spelled in plain tokens (without that space).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.vocabulary import load_vocabulary

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = (Tool("add", "", SCHEMA), Tool("now"), Tool("files.list", "", {"type": "object"}))
THINK = "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant"
CALL_HEAD = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"
FINAL = "<|channel|>final<|message|>4<|return|>"
_SPELLED = "<\u200b|"


@dataclass(frozen=True)
class Case:
    """rules: arguments of `check` (`"tools": "declared"` in the files stands for TOOLS)."""

    name: str
    text: str
    codes: tuple[tuple[str, ...], ...] = ()
    rules: dict[str, Any] = field(default_factory=dict)


def _cases(file: str) -> list[Case]:
    cases = []
    for line in (Path(__file__).parent / "golden" / file).read_text("utf-8").splitlines():
        row = json.loads(line)
        rules = {key: TOOLS if value == "declared" else value for key, value in row.get("rules", {}).items()}
        cases.append(Case(row["name"], row["text"], tuple(map(tuple, row.get("codes", ()))), rules))
    return cases


def encode(text: str) -> list[int]:
    """Ids of a case's text (without marks)."""
    vocabulary = load_vocabulary()
    ids: list[int] = []
    for number, part in enumerate(text.split(_SPELLED)):
        if number:
            ids.extend(vocabulary.encode("<|"))
        ids.extend(vocabulary.encode_with_specials(part))
    return ids


def ids_of(text: str) -> tuple[list[int], list[int]]:
    """Ids of a case's text, and the positions of its marks."""
    *before, _ = text.split("§")
    ids = encode(text.replace("§", ""))
    positions, prefix = [], ""
    for piece in before:
        prefix += piece
        positions.append(len(encode(prefix)))
        assert ids[: positions[-1]] == encode(prefix), "a mark must stand between two tokens"
    return ids, positions


MALFORMED = _cases("malformed_completions.jsonl")
VALID = _cases("valid_completions.jsonl")
