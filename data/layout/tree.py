"""All turns of a conversation in one forward pass: a prefix tree of its examples, in depth-first order.

Two integers a token describe it: `position` (as at inference) and `subtree_end`. Token i attends to j iff
`j <= i < subtree_end[j]`; in sliding layers also `position[i] - position[j] < window`. Loss and gradients equal
those of the separate examples. Several trees in one row are a forest with the same two arrays, so packing is the same
mechanism, and so are the completions of one RL prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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


@dataclass(slots=True)
class _Node:
    """A run of ids at depth `start`; examples that share it share its tokens."""

    ids: Int32
    start: int
    children: list[_Node] = field(default_factory=list)
    first: int = 0


def tree_of(examples: Sequence[Example]) -> TreeRow:
    """One tree row of `examples` that share prefixes (at least one example, each of at least two tokens)."""
    root = _Tree(examples).root
    size = _number(root)
    ids, position, subtree_end = (np.empty(size, dtype=np.int32) for _ in range(3))
    _write(root, ids, position, subtree_end)
    sources, target_ids, weights, channels = [], [], [], []
    for example in examples:
        path = _path(root, example.ids)
        trained = np.flatnonzero(example.weights > 0)
        sources.append(path[trained - 1])
        target_ids.append(example.ids[trained])
        weights.append(example.weights[trained])
        channels.append(example.channels[trained])
    return TreeRow(
        ids,
        position,
        subtree_end,
        np.concatenate(sources),
        np.concatenate(target_ids),
        np.concatenate(weights),
        np.concatenate(channels),
        tuple(f"{e.source}#{e.turn}" + (f".{e.action}" if e.action else "") for e in examples),
        sum(len(e.ids) for e in examples),
    )


def size_of_tree(examples: Sequence[Example]) -> int:
    """Tokens of `tree_of(examples)`, without making it."""
    if len(examples) == 1:
        return len(examples[0].ids)
    root = _Tree(examples).root
    return _number(root)


def trees_of(examples: Sequence[Example], budget: int) -> list[TreeRow]:
    """Tree rows of at most `budget` tokens each; examples that do not fit with their siblings get their own tree.

    An example longer than `budget` is its own row, over the budget: the caller decides what is too long.
    """
    if not examples:
        return []
    whole = tree_of(examples)
    if len(whole) <= budget or len(examples) == 1:
        return [whole]
    half = len(examples) // 2
    return trees_of(examples[:half], budget) + trees_of(examples[half:], budget)


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


class _Tree:
    """A prefix tree under construction."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.root = _Node(np.empty(0, dtype=np.int32), 0)
        self._last: Int32 = self.root.ids
        self._path = [self.root]
        for example in examples:
            self._insert(example.ids)

    def _insert(self, ids: Int32) -> None:
        # An example mostly goes on where the one before it did: what both share is compared once.
        shared = _common(self._last, ids)
        path = [node for node in self._path if node.start + len(node.ids) <= shared]
        node, done = path[-1], path[-1].start + len(path[-1].ids)
        while done < len(ids):
            child = next((c for c in node.children if c.ids[0] == ids[done]), None)
            if child is None:
                child = _Node(ids[done:], done)
                node.children.append(child)
            shared = _common(child.ids, ids[done:])
            if shared < len(child.ids):
                child.children = [_Node(child.ids[shared:], done + shared, child.children)]
                child.ids = child.ids[:shared]
            node, done = child, done + shared
            path.append(node)
        self._last, self._path = ids, path


def _common(a: Int32, b: Int32) -> int:
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n


def _number(root: _Node) -> int:
    """Depth-first index of each node's first token; the number of tokens."""
    count, stack = 0, [root]
    while stack:
        node = stack.pop()
        node.first = count
        count += len(node.ids)
        stack.extend(reversed(node.children))
    return count


def _write(root: _Node, ids: Int32, position: Int32, subtree_end: Int32) -> None:
    order: list[_Node] = []
    stack = [root]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(reversed(node.children))
    ends: dict[int, int] = {}
    for node in reversed(order):
        last = node.first + len(node.ids)
        end = ends[id(node.children[-1])] if node.children else last
        ends[id(node)] = end
        here = slice(node.first, last)
        ids[here] = node.ids
        position[here] = np.arange(node.start, node.start + len(node.ids), dtype=np.int32)
        subtree_end[here] = end


def _path(root: _Node, ids: Int32) -> Int32:
    """Row index of each token of an inserted example."""
    parts: list[Int32] = []
    node, done = root, 0
    while done < len(ids):
        node = next(c for c in node.children if c.ids[0] == ids[done])
        parts.append(np.arange(node.first, node.first + len(node.ids), dtype=np.int32))
        done += len(node.ids)
    return np.concatenate(parts)
