"""A first look at sources: counts of the rows read so far, without rendering any; and a choice of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import monotonic

from counterpoint.data.counts.counter import Item, RowCounter
from counterpoint.data.counts.lines import first_look_lines


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows `first` to `last` (None: to the end), numbered as in their source: `file:17` is row 17."""

    first: int = 1
    last: int | None = None

    def __contains__(self, item: Item) -> bool:
        number = row_number(item)
        return number is None or (number >= self.first and not self.is_behind(number))

    def is_behind(self, number: int | None) -> bool:
        return self.last is not None and number is not None and number > self.last


EVERY_ROW = RowRange()


@dataclass(frozen=True, slots=True)
class FirstLook:
    """Counts of the rows read so far, and the wanted ones among them. complete: the sources hold no more."""

    counts: RowCounter
    rows: list[Item]
    complete: bool

    def lines(self) -> list[str]:
        """The counts for a person."""
        return first_look_lines(self.counts, self.complete)


def row_number(item: Item) -> int | None:
    """N of `file:N`; None where the source has no number."""
    found = re.search(r":(\d+)$", item.source)
    return int(found.group(1)) if found else None


def chosen(first: Iterable[Item], items: Iterable[Item], rows: RowRange, one_file: bool) -> Iterator[Item]:
    """The rows that a first look kept, then those of the rest; numbers only grow in `one_file`, so it ends early."""
    yield from first
    for item in items:
        if one_file and rows.is_behind(row_number(item)):
            return
        if item in rows:
            yield item


def first_look(
    items: Iterator[Item], wanted: RowRange = EVERY_ROW, rows: int = 1_000, seconds: float = 1.0
) -> FirstLook:
    """Reads up to so many rows, or for so long after the first. `items` continues after what was read."""
    counts, kept = RowCounter(), []
    until = None
    for item in items:
        counts.add(item)
        if item in wanted:
            kept.append(item)
        until = until or monotonic() + seconds
        if counts.rows >= rows or monotonic() > until:
            return FirstLook(counts, kept, complete=False)
    return FirstLook(counts, kept, complete=True)
