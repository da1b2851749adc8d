"""The training examples of one row as a prefix tree: what they share is held once, so that size and work are linear
in the turns of a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.data.conversation import Notice
from counterpoint.data.harmony.spans import CHANNEL_NAMES, CONTEXT, Example

Int32 = npt.NDArray[np.int32]
Run = tuple[int, int, float, int]
"""(start, stop, weight, channel) of tokens of an example that are treated alike, outside its context."""


@dataclass(frozen=True)
class ExampleTree:
    """The examples of one row (E of them). A node (N of them) is a run of tokens that the same examples hold.

    ids (S,): the nodes' tokens, in depth-first order, children by the first example that reaches them. node_length,
    node_parent (N,), -1 for a first node. turns, actions, leaves (E,): of each example; it ends where the node `leaves`
    ends. run_counts (E,): how many of the runs are an example's. run_start (an index in ids), run_length, run_channel,
    run_weight (R,): tokens of targets, each run inside one node; context is in none. All int32, but run_weight float32
    and run_channel uint8.
    """

    source: str
    notices: tuple[Notice, ...]
    ids: Int32
    node_length: Int32
    node_parent: Int32
    turns: Int32
    actions: Int32
    leaves: Int32
    run_counts: Int32
    run_start: Int32
    run_length: Int32
    run_weight: npt.NDArray[np.float32]
    run_channel: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        """Examples."""
        return len(self.leaves)

    @classmethod
    def of(cls, examples: Sequence[Example]) -> ExampleTree:
        """The tree of `examples`, which are of one row (none makes an empty one)."""
        builder = TreeBuilder()
        for example in examples:
            builder.add(example.turn, example.action, 0, example.ids, _runs(example))
        source, notices = (examples[0].source, examples[0].notices) if examples else ("", ())
        return builder.tree(source, notices)

    @cached_property
    def node_first(self) -> Int32:
        """Index in ids of each node's first token."""
        return (np.cumsum(self.node_length) - self.node_length).astype(np.int32)

    @cached_property
    def node_depth(self) -> Int32:
        """Tokens before each node."""
        depth: list[int] = []
        lengths = self.node_length.tolist()
        for parent in self.node_parent.tolist():
            depth.append(0 if parent < 0 else depth[parent] + lengths[parent])
        return np.array(depth, dtype=np.int32)

    @property
    def lengths(self) -> Int32:
        """Tokens of each example, (E,)."""
        return self.node_depth[self.leaves] + self.node_length[self.leaves]

    def run_nodes(self) -> npt.NDArray[np.intp]:
        """The node of each run."""
        return np.searchsorted(self.node_first, self.run_start, side="right") - 1

    def examples(self) -> Iterator[Example]:
        """The examples, one at a time: together they may be far larger than the tree."""
        return self._from([0] * len(self))

    def targets(self) -> Iterator[Example]:
        """Of each example the tokens from its first target on."""
        runs, starts = np.cumsum(self.run_counts) - self.run_counts, self._run_depths()
        return self._from([starts[run] if count else 0 for run, count in zip(runs, self.run_counts, strict=True)])

    def _run_depths(self) -> list[int]:
        """Tokens of its example before each run."""
        nodes = self.run_nodes()
        return (self.run_start - self.node_first[nodes] + self.node_depth[nodes]).tolist()

    def _from(self, depths: Sequence[int]) -> Iterator[Example]:
        """Each example from a depth on; only the nodes that reach there are looked at."""
        bounds, starts = np.cumsum([0, *self.run_counts.tolist()]).tolist(), self._run_depths()
        parents, firsts, lengths = self.node_parent.tolist(), self.node_first.tolist(), self.node_length.tolist()
        before = self.node_depth.tolist()
        for k, (leaf, depth) in enumerate(zip(self.leaves.tolist(), depths, strict=True)):
            parts, node, top = [], leaf, 0
            while node >= 0 and before[node] + lengths[node] > depth:
                parts.append(self.ids[firsts[node] : firsts[node] + lengths[node]])
                node, top = parents[node], before[node]
            ids = np.concatenate(parts[::-1])[max(0, depth - top) :]
            weights, channels = np.zeros(len(ids), dtype=np.float32), np.zeros(len(ids), dtype=np.uint8)
            for run in range(bounds[k], bounds[k + 1]):
                here = slice(starts[run] - depth, starts[run] - depth + self.run_length[run])
                weights[here], channels[here] = self.run_weight[run], self.run_channel[run]
            turn, action = int(self.turns[k]), int(self.actions[k])
            yield Example(self.source, turn, ids, weights, channels, self.notices, action)

    def runs_of(self, chosen: Int32) -> npt.NDArray[np.int64]:
        """The numbers of the runs of the examples `chosen`, in order."""
        counts = self.run_counts[chosen].astype(np.int64)
        first = (np.cumsum(self.run_counts) - self.run_counts)[chosen]
        return np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())

    def tokens_by_channel(self, runs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Tokens of `runs` by the code of their channel, (4,); a token counts in every example whose target it is."""
        counts = np.bincount(self.run_channel[runs], self.run_length[runs], minlength=len(CHANNEL_NAMES))
        return counts.astype(np.int64)


@dataclass(slots=True, eq=False)
class _Node:
    """A run of ids at depth `start`; children by their first id."""

    ids: Int32
    start: int
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)
    number: int = -1
    first: int = 0


class TreeBuilder:
    """A tree under construction; work is linear in the tokens that examples do not share with the one before."""

    def __init__(self) -> None:
        self._path = [_Node(np.empty(0, dtype=np.int32), 0, None)]
        self._last = np.empty(1024, dtype=np.int32)
        self._size = 0
        self._examples: list[tuple[int, int, _Node, Sequence[Run]]] = []

    def add(self, turn: int, action: int, shared: int, ids: Int32, runs: Sequence[Run]) -> None:
        """An example: the first `shared` tokens of the one that was added before it, then `ids` (at least one)."""
        stop = shared + len(ids)
        common = shared + _common(self._last[shared : self._size], ids)
        self._hold(shared, ids)
        path = self._path
        while path[-1].start + len(path[-1].ids) > common:
            path.pop()
        node = path[-1]
        done = node.start + len(node.ids)
        while done < stop:
            rest = self._last[done:stop]
            child = node.children.get(int(rest[0]))
            if child is None:
                child = node.children[int(rest[0])] = _Node(rest.copy(), done, node)
            elif (same := _common(child.ids, rest)) < len(child.ids):
                child = _split(child, same)
            node, done = child, done + len(child.ids)
            path.append(node)
        self._examples.append((turn, action, node, runs))

    def _hold(self, start: int, ids: Int32) -> None:
        self._size = start + len(ids)
        if self._size > len(self._last):
            more = np.empty(2 * self._size, dtype=np.int32)
            more[:start] = self._last[:start]
            self._last = more
        self._last[start : self._size] = ids

    def tree(self, source: str, notices: tuple[Notice, ...]) -> ExampleTree:
        """The examples so far."""
        nodes: list[_Node] = []
        stack = [*reversed(self._path[0].children.values())]
        first = 0
        while stack:
            node = stack.pop()
            node.number, node.first = len(nodes), first
            nodes.append(node)
            first += len(node.ids)
            stack.extend(reversed(node.children.values()))
        counts, runs = [], []
        for _, _, leaf, of_example in self._examples:
            before = len(runs)
            runs += _in_nodes(leaf, of_example)
            counts.append(len(runs) - before)
        starts, lengths, weights, channels = zip(*runs, strict=True) if runs else ((), (), (), ())
        return ExampleTree(
            source,
            notices,
            np.concatenate([np.empty(0, dtype=np.int32), *(node.ids for node in nodes)]),
            _int32([len(node.ids) for node in nodes]),
            _int32([node.parent.number if node.parent else -1 for node in nodes]),
            _int32([turn for turn, _, _, _ in self._examples]),
            _int32([action for _, action, _, _ in self._examples]),
            _int32([leaf.number for _, _, leaf, _ in self._examples]),
            _int32(counts),
            _int32(starts),
            _int32(lengths),
            np.array(weights, dtype=np.float32),
            np.array(channels, dtype=np.uint8),
        )


def _split(node: _Node, at: int) -> _Node:
    """A new node of the first `at` ids, with `node` under it: examples that end at `node` still do."""
    assert node.parent is not None
    upper = _Node(node.ids[:at], node.start, node.parent)
    node.parent.children[int(upper.ids[0])] = upper
    upper.children[int(node.ids[at])] = node
    node.ids, node.start, node.parent = node.ids[at:], node.start + at, upper
    return upper


def _in_nodes(leaf: _Node, runs: Sequence[Run]) -> list[tuple[int, int, float, int]]:
    """The runs of an example, (index in ids, length, weight, channel), none over the border of a node."""
    out: list[tuple[int, int, float, int]] = []
    node, stop_of_node = leaf, leaf.start + len(leaf.ids)
    for start, stop, weight, channel in reversed(runs):
        while stop > start:
            while node.start >= stop:
                assert node.parent is not None
                node = node.parent
                stop_of_node = node.start + len(node.ids)
            assert stop <= stop_of_node
            begin = max(start, node.start)
            out.append((node.first + begin - node.start, stop - begin, weight, channel))
            stop = begin
    out.reverse()
    return out


def _runs(example: Example) -> list[Run]:
    edges = np.flatnonzero(
        (np.diff(example.channels, prepend=CONTEXT) != 0) | (np.diff(example.weights, prepend=0) != 0)
    ).tolist()
    return [
        (start, stop, float(example.weights[start]), int(example.channels[start]))
        for start, stop in pairwise([*edges, len(example.ids)])
        if example.channels[start] != CONTEXT
    ]


def _common(a: Int32, b: Int32) -> int:
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n


def _int32(values: Sequence[int]) -> Int32:
    return np.array(values, dtype=np.int32)
