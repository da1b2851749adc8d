"""Source files -> the training examples of each row, with a report of the outcome of every source row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import orjson

from counterpoint.configs.data_section import ConversionSettings, SourceSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.dataset.row_keys import keys_of
from counterpoint.data.dataset.targets import Targets
from counterpoint.data.formats.read import converted_rows, weighted_rows
from counterpoint.data.harmony.cut import cut_to_fit
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.prepared.trees import RowKeys
from counterpoint.data.rows.row import BadRow

OnBad = Callable[[BadRow], None]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation and its training examples (none for a prompt that ends in a user message)."""

    conversation: Conversation
    tree: ExampleTree
    keys: RowKeys


def render_sources(
    specs: Sequence[SourceSettings],
    options: ConversionSettings,
    renderer: Renderer,
    report: RowCounter,
    *,
    max_tokens: int | None = None,
    cut: bool = False,
    on_bad: OnBad | None = None,
) -> Iterator[Rendered]:
    """Every usable row in order, rendered; bad rows go to the report and to `on_bad`. Memory stays flat.

    Examples longer than `max_tokens` are left out and counted in the report, the others by the caller; cut: a
    conversation of one such example first ends behind the last turn that fits.
    """
    for row, format, times in weighted_rows(specs):
        converted = converted_rows(row, format, times, options)
        yield from render_rows(converted, renderer, report, max_tokens=max_tokens, cut=cut, on_bad=on_bad, raw=row.raw)


def render_rows(
    rows: Iterable[Conversation | Preference | BadRow],
    renderer: Renderer,
    report: RowCounter,
    *,
    max_tokens: int | None = None,
    cut: bool = False,
    on_bad: OnBad | None = None,
    raw: bytes = b"",
) -> Iterator[Rendered]:
    """`render_sources` of one row that is converted already, as often as it is taken; `raw` are its bytes."""
    targets = Targets(renderer)
    last: tuple[Conversation, Conversation, ExampleTree, int, str] | None = None
    for item in rows:
        if isinstance(item, BadRow):
            _quarantine(item, report, on_bad)
            continue
        if isinstance(item, Preference):
            row = RowError("preference", "row", "a preference pair, not a conversation", "use it in a dpo recipe")
            _quarantine(BadRow(item.prompt.source, row.kind, row.field, row.what, row.fix, raw), report, on_bad)
            continue
        try:
            if last is None or last[0] is not item:
                taken, (tree, too_long) = item, renderer.tree(item, max_tokens)
                if cut and too_long and max_tokens and (shorter := cut_to_fit(item, renderer, max_tokens)):
                    taken, (tree, too_long) = shorter, renderer.tree(shorter, max_tokens)
                last = (item, taken, tree, too_long, renderer.effort_of(taken))
            _, taken, tree, too_long, effort = last
            targets.check(taken, tree.targets(), effort, report)
        except RowError as error:
            _quarantine(BadRow(item.source, error.kind, error.field, error.what, error.fix, raw), report, on_bad)
            continue
        report.add(taken, effort)
        report.too_long += too_long
        report.prompts += not len(tree) and not too_long
        yield Rendered(taken, tree, keys_of(taken))


class Quarantine:
    """Appends bad rows with their reason and original bytes to a file, one JSON object a line, as they come; without a
    file it does nothing. A resumed run writes a row once."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._known: set[bytes] = set()

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: BadRow) -> None:
        if self._path is None:
            return
        if self._file is None:
            lines = self._path.read_bytes().splitlines() if self._path.is_file() else []
            self._known = {blake2b(line, digest_size=16).digest() for line in lines}
            self._file = self._path.open("ab")
        line = orjson.dumps(row.quarantined())
        if blake2b(line, digest_size=16).digest() not in self._known:
            self._file.write(line + b"\n")


def _quarantine(row: BadRow, report: RowCounter, on_bad: OnBad | None) -> None:
    report.add(row)
    if on_bad is not None:
        on_bad(row)
