"""Best-fit packing of tree rows into rows of a token budget, in a stream.

A window of trees is buffered and packed together, longest first, each into the open row that it leaves fullest
(best-fit decreasing). Order within the window changes, nothing is dropped, and the result depends on the input alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from counterpoint.data.layout.tree import TreeRow, forest_of

WINDOW = 2048


def pack(trees: Iterable[TreeRow], budget: int, window: int = WINDOW) -> Iterator[TreeRow]:
    """Rows of at most `budget` tokens (a tree longer than that is a row of its own)."""
    held: list[TreeRow] = []
    for tree in trees:
        held.append(tree)
        if len(held) == window:
            yield from _pack_window(held, budget)
            held = []
    yield from _pack_window(held, budget)


def _pack_window(trees: list[TreeRow], budget: int) -> Iterator[TreeRow]:
    order = sorted(range(len(trees)), key=lambda i: (-len(trees[i]), i))
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for index in order:
        size = len(trees[index])
        place = bisect_left(free, (size, -1))
        if place < len(free):
            left, bin_ = free.pop(place)
        else:
            left, bin_ = max(budget, size), len(bins)
            bins.append([])
        bins[bin_].append(index)
        if left > size:
            insort(free, (left - size, bin_))
    for members in sorted(sorted(bin_) for bin_ in bins):
        yield forest_of([trees[i] for i in members])
