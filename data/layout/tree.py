"""All turns of a conversation in one forward pass: a prefix tree of its examples, in depth-first order.

Two integers a token describe it: `position` (as at inference) and `subtree_end`. Token i attends to j iff
`j <= i < subtree_end[j]`; in sliding layers also `position[i] - position[j] < window`. Loss and gradients equal
those of the separate examples. Several trees in one row are a forest with the same two arrays, so packing is the same
mechanism, and so are the completions of one RL prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.spans import Example

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A forest of prefix trees.

    ids, position, subtree_end: (S,) int32. Targets are triples, because one source can have several: target_source (T,)
    int32 is the index whose hidden state predicts target_id (T,) int32, with target_weight (T,) float32 and
    target_channel (T,) uint8 (codes of `render.CHANNEL_NAMES`). sources: "file:line#turn" of each example, in order,
    with ".action" after the first of a turn; n_unshared: tokens that the separate examples would have.
    """

    ids: Int32
    position: Int32
    subtree_end: Int32
    target_source: Int32
    target_id: Int32
    target_weight: npt.NDArray[np.float32]
    target_channel: npt.NDArray[np.uint8]
    sources: tuple[str, ...]
    n_unshared: int

    def __len__(self) -> int:
        return len(self.ids)


def row_of(tree: ExampleTree, chosen: Int32 | None = None) -> TreeRow:
    """The row of the examples `chosen`, ascending numbers, None for all (at least one, each of at least two tokens)."""
    order = _order(tree, chosen)
    chosen = np.arange(len(tree), dtype=np.int32) if chosen is None else chosen
    lengths = tree.node_length[order]
    begins = np.cumsum(lengths) - lengths
    place = np.zeros(len(tree.node_length), dtype=np.int64)  # in `order`, of the nodes that are in it
    place[order] = np.arange(len(order))
    ids = np.concatenate([tree.ids[a : a + n] for a, n in zip(tree.node_first[order], lengths, strict=True)])
    position = np.arange(len(ids)) - np.repeat(begins - tree.node_depth[order], lengths)
    runs = tree.runs_of(chosen)
    runs = runs[tree.run_weight[runs] > 0]
    nodes, sizes = tree.run_nodes()[runs], tree.run_length[runs]
    starts = tree.run_start[runs] - tree.node_first[nodes] + begins[place[nodes]]
    above = place[tree.node_parent[nodes]]
    before = np.where(starts == begins[place[nodes]], begins[above] + lengths[above] - 1, starts - 1)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    targets = np.repeat(starts, sizes) + within
    turns, actions = tree.turns[chosen].tolist(), tree.actions[chosen].tolist()
    return TreeRow(
        ids,
        position.astype(np.int32),
        np.repeat(_ends(begins + lengths, tree.node_parent[order], place), lengths),
        np.where(within == 0, np.repeat(before, sizes), targets - 1).astype(np.int32),
        ids[targets],
        np.repeat(tree.run_weight[runs], sizes),
        np.repeat(tree.run_channel[runs], sizes),
        tuple(f"{tree.source}#{t}" + (f".{a}" if a else "") for t, a in zip(turns, actions, strict=True)),
        int(tree.lengths[chosen].sum(dtype=np.int64)),
    )


def places_of(tree: ExampleTree, chosen: Int32) -> list[npt.NDArray[np.int64]]:
    """Of each of the examples `chosen`, where its tokens lie in `row_of`."""
    order = _order(tree, chosen)
    begins = np.zeros(len(tree.node_length), dtype=np.int64)
    begins[order] = np.cumsum(tree.node_length[order]) - tree.node_length[order]
    out = []
    for leaf in tree.leaves[chosen].tolist():
        parts, node = [], leaf
        while node >= 0:
            parts.append(np.arange(begins[node], begins[node] + tree.node_length[node]))
            node = int(tree.node_parent[node])
        out.append(np.concatenate(parts[::-1]))
    return out


def size_of(tree: ExampleTree, chosen: Int32 | None = None) -> int:
    """Tokens of `row_of`, without making it."""
    return len(tree.ids) if chosen is None else int(tree.node_length[_order(tree, chosen)].sum())


def parts_of(tree: ExampleTree, chosen: Int32, budget: int) -> list[tuple[int, int]]:
    """(first, last) of those of `chosen` that share a row of at most `budget` tokens: examples that do not fit with
    their siblings get a row of their own.

    An example longer than `budget` is its own row, over the budget: the caller decides what is too long.
    """
    parts: list[tuple[int, int]] = []
    stack = [(0, len(chosen))] if len(chosen) else []
    while stack:
        first, last = stack.pop()
        if last - first == 1 or len(tree.ids) <= budget or size_of(tree, chosen[first:last]) <= budget:
            parts.append((first, last))
            continue
        half = first + (last - first) // 2
        stack += [(half, last), (first, half)]
    return parts


def _order(tree: ExampleTree, chosen: Int32 | None) -> npt.NDArray[np.int64]:
    """The nodes of the examples `chosen`, in the depth-first order that a tree of these alone would have."""
    if chosen is None or len(chosen) == len(tree):
        return np.arange(len(tree.node_length))
    parents = tree.node_parent.tolist()
    children: dict[int, list[int]] = {-1: []}
    for leaf in tree.leaves[chosen].tolist():
        path, node = [], leaf
        while node not in children:
            path.append(node)
            node = parents[node]
        for new in reversed(path):
            children[parents[new]].append(new)
            children[new] = []
    order, stack = [], children[-1][::-1]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(reversed(children[node]))
    return np.array(order, dtype=np.int64)


def _ends(ends: npt.NDArray[Any], parents: Int32, place: npt.NDArray[np.int64]) -> Int32:
    """Where the subtree of each node ends, from where it ends itself, in depth-first order."""
    out, above = ends.tolist(), np.where(parents < 0, -1, place[parents]).tolist()
    for at in range(len(out) - 1, 0, -1):
        if above[at] >= 0 and out[above[at]] < out[at]:
            out[above[at]] = out[at]
    return np.array(out, dtype=np.int32)


def tree_of(examples: Sequence[Example]) -> TreeRow:
    """One tree row of `examples` that share prefixes (at least one example, each of at least two tokens)."""
    return row_of(ExampleTree.of(examples))


def forest_of(rows: Sequence[TreeRow]) -> TreeRow:
    """Several tree rows one after another in one row; they do not attend to each other."""
    if len(rows) == 1:
        return rows[0]
    offsets = np.cumsum([0, *(len(row) for row in rows[:-1])])
    return TreeRow(
        np.concatenate([row.ids for row in rows]),
        np.concatenate([row.position for row in rows]),
        _shifted([row.subtree_end for row in rows], offsets),
        _shifted([row.target_source for row in rows], offsets),
        np.concatenate([row.target_id for row in rows]),
        np.concatenate([row.target_weight for row in rows]),
        np.concatenate([row.target_channel for row in rows]),
        tuple(source for row in rows for source in row.sources),
        sum(row.n_unshared for row in rows),
    )


def _shifted(arrays: Sequence[Int32], offsets: Iterable[int]) -> Int32:
    shifted = [array + offset for array, offset in zip(arrays, offsets, strict=True)]
    return np.concatenate(shifted).astype(np.int32)
