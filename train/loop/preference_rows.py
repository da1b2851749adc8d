"""Pairs and rated completions as micro-batches: tree rows in which the prompt of both sides is computed once.

Every unit of a step has two sides. Of a pair: the chosen and the rejected completion. Of a rated completion: itself,
and another row's completion behind its prompt, from which the drift of the model is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from counterpoint.data.dataset.pairs import Pair, Rated
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.layout.pack import pack
from counterpoint.data.layout.tree import TreeRow, forest_of, row_of
from counterpoint.train.loop.policy_rows import MicroBatch, example_of, tensors_of


@dataclass(frozen=True)
class Completion:
    """mask: 1 for each token of `ids` that is compared."""

    prompt_ids: Sequence[int]
    ids: Sequence[int]
    mask: Sequence[int]

    @property
    def tokens(self) -> int:
        """Prompt included."""
        return len(self.prompt_ids) + len(self.ids)


Unit = tuple[Completion, Completion]


def units_of(rows: Sequence[Pair | Rated]) -> list[Unit]:
    """The sides of the rows of a step. A rated completion's other side is the completion of the row before it, the
    first one's that of the last."""
    units: list[Unit] = []
    for n, row in enumerate(rows):
        if isinstance(row, Pair):
            chosen = Completion(row.prompt_ids, row.chosen_ids, row.chosen_mask)
            units.append((chosen, Completion(row.prompt_ids, row.rejected_ids, row.rejected_mask)))
        else:
            other = rows[n - 1]
            assert isinstance(other, Rated)
            own = Completion(row.prompt_ids, row.ids, row.mask)
            units.append((own, Completion(row.prompt_ids, other.ids, other.mask)))
    return units


def micro_batches(
    units: Sequence[Unit], sides: Sequence[int], budget: int, collate: Callable[[list[TreeRow]], dict[str, Any]]
) -> list[MicroBatch]:
    """Tree rows of at most `budget` tokens, one a micro-batch; a unit that is longer is a row of its own.

    sides: the ones that are in it, of each unit, 0 and 1. Beside what `collate` gives, a micro-batch has `units` (U,),
    the numbers of its units, and `side` (T,), the number of each target's completion: twice its unit's, and the side.
    """
    trees, inside = [], []
    for n, unit in enumerate(units):
        compared = [(2 * n + side, unit[side]) for side in sides if any(unit[side].mask)]
        assert compared, f"nothing of unit {n} is compared"
        examples = [example_of(each.prompt_ids, each.ids, each.mask) for _, each in compared]
        trees.append(row_of(ExampleTree.of(examples)))
        inside.append([(number, sum(each.mask)) for number, each in compared])
    batches = []
    for packed in pack([len(tree) for tree in trees], budget):
        batch = tensors_of(collate([forest_of([trees[n] for n in packed])]))
        numbers, counts = zip(*(each for n in packed for each in inside[n]), strict=True)
        batch["side"] = torch.tensor(numbers).repeat_interleave(torch.tensor(counts))
        batches.append({**batch, "units": torch.tensor(packed)})
    return batches


def filling(collate: Callable[[list[TreeRow]], dict[str, Any]], units: int, prompt_ids: Sequence[int]) -> MicroBatch:
    """A micro-batch of no unit, for a process that has fewer than another: a sharded model waits for all of them. Its
    target belongs to a completion behind those of the `units` that there are."""
    one = Completion([], [*prompt_ids[:1], *prompt_ids[:1]], [0, 1])
    (batch,) = micro_batches([(one, one)], (0,), 2, collate)
    return {**batch, "side": batch["side"] + 2 * units, "units": batch["units"][:0]}
