"""A first look at sources: formats and counts of the rows read so far, without rendering any; and a choice of rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic

from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.harmony.window import split_turns
from counterpoint.data.rows.row import BadRow

Item = Conversation | Preference | BadRow


@dataclass(slots=True)
class Survey:
    """Counts over rows. notices and bad: by kind, over rows. complete: whether the sources were read to their end."""

    rows: int = 0
    turns: int = 0
    complete: bool = False
    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    notices: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, item: Item) -> None:
        self.rows += 1
        if isinstance(item, BadRow):
            self.bad[item.kind] += 1
            return
        conversation = item.prompt if isinstance(item, Preference) else item
        self.formats[conversation.format or "unnamed"] += 1
        self.notices.update({notice.kind for notice in conversation.notices})
        turns = len(split_turns(conversation.messages))
        self.turns += turns
        self.kinds["preference" if isinstance(item, Preference) else "conversation" if turns else "prompt"] += 1

    def lines(self) -> list[str]:
        """The counts for a person: rows, then notices and bad rows where there are any."""
        if not self.rows:
            return ["no rows"]
        which = "all" if self.complete else "first"
        kinds = [f"{count:,} {name}{'s' * (count != 1)}" for name, count in sorted(self.kinds.items())]
        if self.kinds["conversation"]:
            kinds.append(f"{self.turns:,} assistant turn{'s' * (self.turns != 1)}")
        if self.bad:
            kinds.append(f"{self.bad.total():,} bad")
        formats = ", ".join(
            name if len(self.formats) == 1 else f"{name} ({count:,})" for name, count in self.formats.most_common()
        )
        rows = f"{which} {self.rows:,} row{'s' * (self.rows != 1)}" + ("" if self.complete else ", more follow")
        out = [f"format {formats or 'none'} · {rows}: {', '.join(kinds)}"]
        for title, counts in (("notices", self.notices), ("bad rows", self.bad)):
            if counts:
                out.append(f"{title}: {', '.join(f'{kind} {count:,}' for kind, count in counts.most_common())}")
        return out


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows `first` to `last` (None: to the end), numbered as their source says: `file:17` is row 17."""

    first: int = 1
    last: int | None = None

    def __contains__(self, item: Item) -> bool:
        number = row_number(item)
        return number is None or (number >= self.first and not self.is_behind(number))

    def is_behind(self, number: int | None) -> bool:
        return self.last is not None and number is not None and number > self.last


EVERY_ROW = RowRange()


def source_of(item: Item) -> str:
    """`file:line` of a row."""
    return item.prompt.source if isinstance(item, Preference) else item.source


def row_number(item: Item) -> int | None:
    """N of `file:N`; None where the source has no number."""
    found = re.search(r":(\d+)$", source_of(item))
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
) -> tuple[Survey, list[Item]]:
    """Reads up to so many rows, or for so long after the first; returns the counts and the wanted rows among them.

    `items` goes on behind what was read.
    """
    survey, kept = Survey(), []
    until = None
    for item in items:
        survey.add(item)
        if item in wanted:
            kept.append(item)
        until = until or monotonic() + seconds
        if survey.rows >= rows or monotonic() > until:
            break
    else:
        survey.complete = True
        return survey, kept
    return survey, kept
