"""Counts of prepared rows that only the statistics page shows: one pass, memory that does not grow with the data."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from counterpoint.data.conversation import Conversation
from counterpoint.data.counts.characters import CharacterCounts
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.spans import CHANNEL_NAMES, CONTEXT
from counterpoint.data.harmony.vocabulary import Vocabulary

SAMPLED_WHOLE, SAMPLED_EVERY = 1_000, 16
"""Texts are analysed in the first rows and in every so many rows after them."""

_MAX_NAMES = 2_000
_MAX_HASHES = 1 << 21
OTHERS = "(other names)"


@dataclass(slots=True)
class RowStatistics:
    """Lengths, tools, characters and repeats of the good rows.

    lengths: tokens of an example -> examples. turns: trained turns of a row -> rows. tokens: of all examples, by
    channel of the target, `context` for the rest. called, declared: rows by tool name. characters: of a sample of
    rows (`sampled` says which).
    """

    lengths: Counter[int] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    called: Counter[str] = field(default_factory=Counter)
    declared: Counter[str] = field(default_factory=Counter)
    characters: CharacterCounts = field(default_factory=CharacterCounts)
    _hashes: array[int] = field(default_factory=lambda: array("Q"))
    _shift: int = 0

    def add(
        self,
        conversation: Conversation,
        tree: ExampleTree,
        vocabulary: Vocabulary,
        row: int,
        first: bool = True,
    ) -> None:
        """Counts one row and its examples; `row` is its number among all rows, from 0.

        first: false where a source is weighted and the same row comes again, which makes it no duplicate.
        """
        self.turns[len({*tree.turns.tolist()})] += 1
        lengths = tree.lengths.tolist()
        self.lengths.update(lengths)
        counts = tree.tokens_by_channel(np.arange(len(tree.run_start))).tolist()
        counts[CONTEXT] = sum(lengths) - sum(counts)
        if lengths:
            for name, count in zip(CHANNEL_NAMES, counts, strict=True):
                self.tokens[name] += count
        self.called.update(sorted({m.recipient for m in conversation.messages if m.recipient is not None}))
        declared = {f"functions.{tool.name}" for tool in conversation.tools} | {*conversation.builtin_tools}
        self.declared.update(sorted(declared))
        if sampled(row):
            texts = [message.content for message in conversation.messages]
            if conversation.instructions:
                texts.append(conversation.instructions)
            self.characters.add(texts, vocabulary)
        if lengths and first:
            digest = hashlib.blake2b(digest_size=8)
            for array in (tree.ids, tree.node_length, tree.node_parent, tree.leaves):
                digest.update(array.tobytes())
            self._keep_hashes([int.from_bytes(digest.digest(), "little")])

    def merge(self, other: RowStatistics) -> None:
        """Adds the counts of the rows that follow."""
        self.lengths.update(other.lengths)
        self.turns.update(other.turns)
        self.tokens.update(other.tokens)
        _merge_names(self.called, other.called)
        _merge_names(self.declared, other.declared)
        self.characters.merge(other.characters)
        self._keep_hashes(other._hashes)

    def _keep_hashes(self, hashes: Sequence[int]) -> None:
        """Where there are too many, only a half of all possible hashes is kept, and so on: repeats stay together."""
        self._hashes.extend(h for h in hashes if not h & ((1 << self._shift) - 1))
        while len(self._hashes) > _MAX_HASHES:
            self._shift += 1
            self._hashes = array("Q", [h for h in self._hashes if not h & ((1 << self._shift) - 1)])

    @property
    def duplicates(self) -> int:
        """Rows that render to the same ids as an earlier one; estimated where there are millions of rows."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        return (len(hashes) - len(np.unique(hashes))) << self._shift

    def quantile(self, share: float) -> int:
        """Length that the given share of examples does not exceed."""
        left = share * self.lengths.total()
        for length, count in sorted(self.lengths.items()):
            left -= count
            if left <= 0:
                return length
        return 0

    def histogram(self) -> list[tuple[int, int, int]]:
        """(first, last, examples) in bins that double every two steps; from the first to the last that holds any."""
        if not self.lengths:
            return []
        edges = [0, *sorted({round(2 ** (step / 2)) for step in range(8, 60)})]
        counts = np.histogram(list(self.lengths), bins=[*edges, 2**31], weights=list(self.lengths.values()))[0]
        used = np.flatnonzero(counts)
        bins = zip(edges, [*edges[1:], 2**31], counts, strict=True)
        return [(a, b - 1, int(c)) for a, b, c in list(bins)[used[0] : used[-1] + 1]]

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "lengths": {
                "histogram": [{"from": a, "to": b, "examples": n} for a, b, n in self.histogram()],
                "median": self.quantile(0.5),
                "p95": self.quantile(0.95),
                "max": max(self.lengths, default=0),
                "mean": round(sum(n * c for n, c in self.lengths.items()) / max(1, self.lengths.total()), 1),
            },
            "turns": {str(turns): rows for turns, rows in sorted(self.turns.items())},
            "tokens": dict(self.tokens),
            "tools_called": dict(self.called.most_common()),
            "tools_declared": dict(self.declared.most_common()),
            "duplicates": self.duplicates,
            "duplicates_estimated": self._shift > 0,
            "characters": self.characters.as_rows(),
            "characters_rows": self.characters.rows,
            "rows": self.turns.total(),
        }


def sampled(row: int) -> bool:
    """Whether the texts of row number `row` (from 0) are analysed."""
    return row < SAMPLED_WHOLE or row % SAMPLED_EVERY == 0


def _merge_names(into: Counter[str], more: Counter[str]) -> None:
    for name, count in more.items():
        into[name if name in into or len(into) < _MAX_NAMES else OTHERS] += count
