"""The rows of a run as files that training maps into memory: made by one process, read by all of a machine.

Each source's examples are in a folder of prepared rows (`PreparedTrees`): the one that a source names, or one that is
rendered here. A row of training names its parts, (tree, first, last): a tree and those of its examples that fit the
limit. What it is made of is read when it is asked for, so memory does not grow with the tokens.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.configs.errors import DataError
from counterpoint.configs.schema import DataSettings, SourceSettings
from counterpoint.data.conversation import Tool
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.counts.lines import training_lines
from counterpoint.data.dataset.row_keys import keys_of_tree
from counterpoint.data.dataset.training_rows import OnBad, render_sources
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.layout.pack import pack
from counterpoint.data.layout.tree import TreeRow, forest_of, parts_of, row_of
from counterpoint.data.prepared.files import ArrowFolder
from counterpoint.data.prepared.source import check_prepared, is_prepared, older_trees
from counterpoint.data.prepared.trees import SCHEMA, PreparedTrees, RowKeys, arrow_batch, holds_trees

Progress = Callable[[int], None]
_BATCH_TOKENS = 250_000
_SUMMARY, _PARTS, _BOUNDS = "summary.json", "parts.npy", "bounds.npy"


class Trees(Sequence[ExampleTree]):
    """The rows of several folders, numbered on."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = [PreparedTrees(folder) for folder in folders]
        self._ends = np.cumsum([0, *map(len, self.folders)]).tolist()[1:]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: Any) -> ExampleTree:  # pyright: ignore[reportIncompatibleMethodOverride]
        folder, row = self._place(number)
        return folder[row]

    def keys(self) -> npt.NDArray[np.uint64]:
        """`RowKeys` of every row, (rows, 3)."""
        return np.concatenate([folder.keys() for folder in self.folders])

    def source(self, number: int) -> str:
        folder, row = self._place(number)
        return folder.source(row)

    def _place(self, number: int) -> tuple[PreparedTrees, int]:
        at = bisect_right(self._ends, number)
        if at == len(self._ends):
            raise IndexError(number)
        return self.folders[at], number - (self._ends[at - 1] if at else 0)


class TrainingRows(Sequence[TreeRow]):
    """Rows of tokens, each made when it is asked for.

    parts (P, 3): tree, and first and last of its examples of at most `max_tokens`. bounds (R + 1,): the parts of row r
    are [bounds[r], bounds[r + 1]).
    """

    def __init__(
        self, trees: Trees, parts: npt.NDArray[np.int64], bounds: npt.NDArray[np.int64], max_tokens: int
    ) -> None:
        self._trees, self._parts, self._bounds, self._max_tokens = trees, parts, bounds, max_tokens

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, number: Any) -> TreeRow:  # pyright: ignore[reportIncompatibleMethodOverride]
        number = range(len(self))[number]
        parts = self._parts[self._bounds[number] : self._bounds[number + 1]].tolist()
        return forest_of([self._part(*part) for part in parts])

    def _part(self, number: int, first: int, last: int) -> TreeRow:
        tree = self._trees[number]
        return row_of(tree, within(tree, self._max_tokens)[first:last])


def within(tree: ExampleTree, max_tokens: int) -> npt.NDArray[np.int32]:
    """The numbers of the examples of at most `max_tokens`."""
    return np.flatnonzero(tree.lengths <= max_tokens).astype(np.int32)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows ready for the collator. fingerprint: hash of every id and weight in order, to find changed data. tools: by
    name, what clients must send under `data.tool_schemas: cleaned`; none of rows that were prepared before."""

    rows: Sequence[TreeRow]
    report: RowCounter
    fingerprint: str
    tools: Mapping[str, Tool] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for a person."""
        return training_lines(self.report)


@dataclass(slots=True)
class ReadRows:
    """The rows of some sources. taken: numbers of their trees in the order of training, as often as they are taken."""

    trees: Trees
    taken: npt.NDArray[np.int64]
    report: RowCounter
    tools: Mapping[str, Tool] = field(default_factory=dict)

    def keys(self) -> npt.NDArray[np.uint64]:
        """`RowKeys` of what is taken, (rows, 3)."""
        return self.trees.keys()[self.taken]


def read_rows(
    sources: Sequence[SourceSettings],
    data: DataSettings,
    renderer: Renderer,
    folder: Path,
    *,
    on_bad: OnBad | None = None,
    progress: Progress | None = None,
) -> ReadRows:
    """Renders what is not prepared yet into folders in `folder`. DataError as of the sources."""
    report = RowCounter()
    folders: list[Path] = []
    taken = array("q")
    first = 0
    for number, spec in enumerate(sources):
        own = folder / f"rows-{number}"
        numbers: Iterator[int]
        if not is_prepared(spec.path):
            numbers = _rendered(spec, data, renderer, report, own, on_bad)
        else:
            numbers, own = _prepared(spec, data, renderer, report, own)
        folders.append(own)
        for tree in numbers:
            taken.append(first + tree)
            if progress is not None:
                progress(len(taken))
        first += len(PreparedTrees(own))
    tools = renderer.openings.rewritten if data.tool_schemas == "cleaned" else {}
    return ReadRows(Trees(folders), np.array(taken, dtype=np.int64), report, tools)


def _rendered(
    spec: SourceSettings, data: DataSettings, renderer: Renderer, report: RowCounter, out: Path, on_bad: OnBad | None
) -> Iterator[int]:
    """The numbers of a source's rows as they are taken, while they are written to `out`."""
    with _Writer(out) as writer:
        last = None
        cut = data.too_long == "cut"
        rendered = render_sources([spec], data, renderer, report, max_tokens=data.max_tokens, cut=cut, on_bad=on_bad)
        for item in rendered:
            if item.tree is not last:
                last = item.tree
                writer.write(item.tree, item.keys)
            yield writer.rows - 1


def _prepared(
    spec: SourceSettings, data: DataSettings, renderer: Renderer, report: RowCounter, copy: Path
) -> tuple[Iterator[int], Path]:
    """The numbers of the rows of a prepared folder as they are taken, and where these are: in `copy` those of a folder
    that an older version wrote."""
    before = check_prepared(spec.path, data, renderer, data.max_tokens)
    folder = Path(spec.path)
    if not holds_trees(folder):
        with _Writer(copy) as writer:
            for tree in older_trees(folder):
                writer.write(tree, keys_of_tree(tree))
        folder = copy
    rows = len(PreparedTrees(folder))
    if spec.rows is None and spec.weight == 1:
        report.merge(before)
        return iter(range(rows)), folder
    rows = rows if spec.rows is None else min(rows, spec.rows)
    taken = [k for k in range(rows) for _ in range(floor((k + 1) * spec.weight) - floor(k * spec.weight))]
    report.rows += len(taken)
    return iter(taken), folder


class _Writer:
    """Writes trees to a new folder in batches."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._out = ArrowFolder(folder, SCHEMA)
        self._held: list[tuple[ExampleTree, RowKeys]] = []
        self._tokens = 0
        self.rows = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush()
            self._out.close("")

    def write(self, tree: ExampleTree, keys: RowKeys) -> None:
        self.rows += 1
        self._held.append((tree, keys))
        self._tokens += len(tree.ids) + 50
        if self._tokens >= _BATCH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._out.write(arrow_batch(self._held))
        self._held, self._tokens = [], 0


def lay_out(read: ReadRows, data: DataSettings, where: str, folder: Path) -> None:
    """Lays the rows out in order, and writes what `load_rows` reads into `folder`; the counts of examples go to the
    report. DataError where nothing is left to train, and as the settings say for bad rows and long examples."""
    report = read.report
    parts = array("q")
    sizes = array("q")
    for number in read.taken.tolist():
        tree = read.trees[number]
        chosen = within(tree, data.max_tokens)
        report.too_long += len(tree) - len(chosen)
        if not len(chosen):
            continue
        report.add_examples(tree, chosen)
        budget = data.max_tokens if data.tree else 0
        for first, last in parts_of(tree, chosen, budget):
            parts.extend((number, first, last))
            sizes.append(0)
    found = np.frombuffer(parts, dtype=np.int64).reshape(-1, 3) if parts else np.empty((0, 3), dtype=np.int64)
    _check(report, data, where)
    alone = TrainingRows(read.trees, found, np.arange(len(found) + 1), data.max_tokens)
    if data.pack_tokens:
        members = [*pack((len(row) for row in alone), data.pack_tokens)]
        found = found[np.fromiter(chain.from_iterable(members), dtype=np.int64, count=len(found))]
        bounds = np.cumsum([0, *map(len, members)], dtype=np.int64)
    else:
        bounds = np.arange(len(found) + 1, dtype=np.int64)
    rows = TrainingRows(read.trees, found, bounds, data.max_tokens)
    fingerprint, report.row_tokens = _fingerprint(rows)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / _PARTS, found)
    np.save(folder / _BOUNDS, bounds)
    summary = {
        "folders": [str(trees.folder.absolute()) for trees in read.trees.folders],
        "report": report.as_dict(),
        "fingerprint": fingerprint,
        "max_tokens": data.max_tokens,
    }
    (folder / _SUMMARY).write_text(json.dumps(summary))


def load_rows(folder: Path, tools: Mapping[str, Tool] | None = None) -> TrainingData:
    """What `lay_out` wrote; the files may be removed afterwards, since they stay open."""
    summary = json.loads((folder / _SUMMARY).read_text())
    parts, bounds = (np.load(folder / name, mmap_mode="r") for name in (_PARTS, _BOUNDS))
    rows = TrainingRows(Trees(map(Path, summary["folders"])), parts, bounds, summary["max_tokens"])
    return TrainingData(rows, RowCounter.from_dict(summary["report"]), summary["fingerprint"], tools or {})


def _check(report: RowCounter, data: DataSettings, where: str) -> None:
    report.check_bad_rows(data.bad_rows_limit, where)
    if data.too_long == "error":
        report.check_too_long(data.max_tokens, where)
    if report.examples:
        return
    if report.too_long:
        raise DataError(
            f"{where}: all {report.too_long} examples are longer than data.max_tokens ({data.max_tokens}): raise it"
        )
    if report.turns:
        raise DataError(
            f"{where}: no token of its {report.turns} assistant turns has a loss weight: see data.weights, "
            "data.train_on and data.missing_thinking"
        )
    raise DataError(f"{where}: no row has an assistant turn to train: check the file with `counterpoint show`")


def _fingerprint(rows: Iterable[TreeRow]) -> tuple[str, int]:
    """The hash of all rows, and their tokens."""
    digest, tokens = hashlib.sha256(), 0
    for row in rows:
        tokens += len(row)
        for values in (row.ids, row.position, row.target_source, row.target_id, row.target_weight):
            digest.update(values.tobytes())
    return digest.hexdigest(), tokens
