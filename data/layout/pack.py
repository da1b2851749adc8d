"""Best-fit packing of trees into rows of a token budget, by their sizes, in a stream.

A window of trees is buffered and packed together, longest first, each into the open row that it leaves fullest
(best-fit decreasing). Order within the window changes, nothing is dropped, and the result depends on the input alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

WINDOW = 2048


def pack(sizes: Iterable[int], budget: int, window: int = WINDOW) -> Iterator[list[int]]:
    """The numbers of the trees of each row of at most `budget` tokens (one longer than that is a row of its own).
    sizes: tokens of each tree."""
    held: list[int] = []
    first = 0
    for size in sizes:
        held.append(size)
        if len(held) == window:
            yield from _pack_window(held, budget, first)
            first += len(held)
            held = []
    yield from _pack_window(held, budget, first)


def _pack_window(sizes: list[int], budget: int, first: int) -> Iterator[list[int]]:
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for index in order:
        size = sizes[index]
        place = bisect_left(free, (size, -1))
        if place < len(free):
            left, bin_ = free.pop(place)
        else:
            left, bin_ = max(budget, size), len(bins)
            bins.append([])
        bins[bin_].append(first + index)
        if left > size:
            insort(free, (left - size, bin_))
    yield from sorted(sorted(bin_) for bin_ in bins)
