"""The rollouts of a step as micro-batches: tree rows in which what rollouts share is computed once.

Legend: N rollouts of this process, T targets of a micro-batch, S tokens of a tree row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.spans import FINAL, Example
from counterpoint.data.layout.pack import pack
from counterpoint.data.layout.tree import TreeRow, forest_of, places_of, row_of, size_of
from counterpoint.train.loop.policy_loss import Targets
from counterpoint.train.model.expert_routes import UNKNOWN
from counterpoint.train.sampling.rollout import SampledRow

MicroBatch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PolicyRow:
    """A row of a rollout whose sampled tokens are learned. rollout: its number; neighbours are of one group. rated: a
    teacher's log-probability of all its tokens but the first, where it was asked before."""

    rollout: int
    row: SampledRow
    rated: Sequence[float] | None = None

    @property
    def n_sampled(self) -> int:
        return sum(self.row.env_mask)


def micro_batches(
    rows: Sequence[PolicyRow],
    advantage_N: Sequence[float],
    weight_N: Sequence[float],
    group: int,
    budget: int,
    collate: Callable[[list[TreeRow]], dict[str, Any]],
    share: float = 0.0,
) -> list[MicroBatch]:
    """Tree rows of at most `budget` tokens, one a micro-batch; a row of rollouts that is longer is one of its own.

    advantage_N, weight_N: of each rollout. group: rollouts that are neighbours and share their prompt. share: of each
    token in a mean over those of the step. What has no sampled token is left out. Beside what `collate` gives, a
    micro-batch has `advantage`, `weight`, `share`, `row` and, where the engine gave them, `sampled`, each (T,); and of
    rollouts with routes `routes` (S, layers, experts a token) int16 and `conflicts`, see `_routes`.
    """
    with_targets = [row for row in rows if row.n_sampled]
    parts: list[TreeRow] = []
    members: list[list[PolicyRow]] = []
    places: list[list[npt.NDArray[np.int64]]] = []
    for _, found in groupby(with_targets, key=lambda row: row.rollout // group):
        of_group = list(found)
        tree = ExampleTree.of(
            [example_of(each.row.prompt_ids, each.row.completion_ids, each.row.env_mask) for each in of_group]
        )
        for first, last in _fitting(tree, budget):
            parts.append(row_of(tree, _range(first, last)))
            members.append(of_group[first:last])
            places.append(places_of(tree, _range(first, last)))
    batches = []
    for packed in pack([len(part) for part in parts], budget):
        batch = collate([forest_of([parts[number] for number in packed])])
        inside = [row for number in packed for row in members[number]]
        begins = np.cumsum([0, *(len(parts[number]) for number in packed)])
        lie = [begin + place for begin, number in zip(begins, packed, strict=False) for place in places[number]]
        facts = _facts(inside, advantage_N, weight_N, share)
        batches.append({**tensors_of(batch), **facts, **_routes(inside, lie, int(begins[-1]))})
    return batches


def filling(collate: Callable[[list[TreeRow]], dict[str, Any]], prompt_ids: Sequence[int]) -> MicroBatch:
    """A micro-batch of weight 0, for a process that has fewer than another: a sharded model waits for all of them."""
    row = PolicyRow(0, SampledRow([], [*prompt_ids[:1], *prompt_ids[:1]], [0, 1]))
    return micro_batches([row], [0.0], [0.0], 1, 2, collate)[0]


def targets_of(batch: MicroBatch, old_T: torch.Tensor) -> Targets:
    return Targets(
        batch["advantage"],
        batch["weight"],
        batch["row"],
        int(batch["row"].max()) + 1,
        batch.get("old", old_T),
        batch.get("sampled"),
        batch.get("reference"),
        batch.get("counts"),
        batch.get("share"),
    )


def _fitting(tree: ExampleTree, budget: int) -> Iterator[tuple[int, int]]:
    """(first, last) of neighbours that make a row of at most `budget` tokens, as many as fit in each."""
    first = 0
    for last in range(2, len(tree) + 1):
        if size_of(tree, _range(first, last)) > budget:
            yield first, last - 1
            first = last - 1
    yield first, len(tree)


def _range(first: int, last: int) -> npt.NDArray[np.int32]:
    return np.arange(first, last, dtype=np.int32)


def example_of(prompt_ids: Sequence[int], ids: Sequence[int], mask: Sequence[int]) -> Example:
    """A prompt and what follows it; mask: 1 for each of `ids` that is a target."""
    weights = np.array([*[0] * len(prompt_ids), *mask], dtype=np.float32)
    return Example("", 0, np.array([*prompt_ids, *ids], dtype=np.int32), weights, (weights * FINAL).astype(np.uint8))


def _facts(
    rows: Sequence[PolicyRow], advantage_N: Sequence[float], weight_N: Sequence[float], share_of_token: float
) -> MicroBatch:
    """In the order of the targets: row after row, and by place within each."""
    counts = torch.tensor([row.n_sampled for row in rows])
    of_rollout = [row.rollout for row in rows]
    facts = {
        "share": torch.full((int(counts.sum()),), share_of_token),
        "advantage": torch.tensor([advantage_N[n] for n in of_rollout], dtype=torch.float32).repeat_interleave(counts),
        "weight": torch.tensor([weight_N[n] for n in of_rollout], dtype=torch.float32).repeat_interleave(counts),
        "row": torch.arange(len(rows)).repeat_interleave(counts),
    }
    if all(each.row.logprobs is not None for each in rows):
        told = [
            math.nan if value is None else value
            for each in rows
            for value, sampled in zip(each.row.logprobs or (), each.row.env_mask, strict=True)
            if sampled
        ]
        facts["sampled"] = torch.tensor(told, dtype=torch.float32)
    if all(each.rated is not None for each in rows):
        its = [
            value
            for each in rows
            for value, sampled in zip(
                (each.rated or ())[len(each.row.prompt_ids) - 1 :], each.row.env_mask, strict=True
            )
            if sampled
        ]
        facts["teacher"] = torch.tensor(its, dtype=torch.float32)
    return facts


def _routes(rows: Sequence[PolicyRow], places: Sequence[npt.NDArray[np.int64]], size: int) -> MicroBatch:
    """The experts of the tokens of a tree row, those of the first rollout that holds a token; `UNKNOWN` where no engine
    said. conflicts: (tokens of which a later one says others, tokens of which it says any)."""
    known = [row.row.routes for row in rows if row.row.routes is not None]
    if not known:
        return {}
    routes_SLK = np.full((size, *known[0].shape[1:]), UNKNOWN, dtype=np.int16)
    differing = shared = 0
    for row, place in zip(rows, places, strict=True):
        if row.row.routes is not None:
            told = row.row.routes[: len(place)]
            place = place[: len(told)]
            again = routes_SLK[place, 0, 0] != UNKNOWN
            before, now = np.sort(routes_SLK[place[again]], axis=-1), np.sort(told[again], axis=-1)
            differing += int((before != now).any((1, 2)).sum())
            shared += int(again.sum())
            routes_SLK[place[~again]] = told[~again]
    return {"routes": torch.from_numpy(routes_SLK), "conflicts": torch.tensor([differing, shared])}


def tensors_of(batch: dict[str, Any]) -> MicroBatch:
    """What a forward pass takes of a collated batch."""
    names = ("input_ids", "position_ids", "subtree_end", "target_index", "target_ids")
    return {name: batch[name] for name in names}
