"""Prepared rows as Arrow shards: one row a conversation, whose examples share what they have in common
(`ExampleTree`). Written in batches, read by number through small windows of memory-mapped files.

Columns: source ("file:line"), prompt_hash, asked_hash, row_hash (`RowKeys`), warnings ("kind: field: detail" of the
row's notices), and the arrays of `ExampleTree` by their names, ids as input_ids.
"""

from __future__ import annotations

import mmap
import os
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from counterpoint.configs.errors import DataError
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.prepared.files import (
    list_offsets,
    notice_of,
    number_array,
    plain_text,
    shard_names,
    string_array,
    warnings_of,
)

KEYS = ("prompt_hash", "asked_hash", "row_hash")
_INTEGERS = (
    "node_length",
    "node_parent",
    "turns",
    "actions",
    "leaves",
    "run_counts",
    "run_start",
    "run_length",
)
LISTS = {
    "input_ids": pa.int32(),
    **dict.fromkeys(_INTEGERS, pa.int32()),
    "run_weight": pa.float32(),
    "run_channel": pa.uint8(),
}
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        *((name, pa.uint64()) for name in KEYS),
        ("warnings", pa.list_(pa.string())),
        *((name, pa.list_(kind)) for name, kind in LISTS.items()),
    ]
)
_WINDOWS = 32


class RowKeys(NamedTuple):
    """64-bit hashes by which rows are told apart. prompt: of what comes before the first answer; asked: of what comes
    before the last answer; row: of everything. 0 where it is not known."""

    prompt: int
    asked: int
    row: int


def arrow_batch(rows: Sequence[tuple[ExampleTree, RowKeys]]) -> bytes:
    """The rows as one serialised record batch of `SCHEMA`."""
    trees = [tree for tree, _ in rows]
    keys = np.array([keys for _, keys in rows], dtype=np.uint64)
    warnings = [warnings_of(tree.notices) for tree in trees]
    texts = string_array([text for row in warnings for text in row])
    columns = [
        string_array([plain_text(tree.source) for tree in trees]),
        *(number_array(pa.uint64(), keys[:, n].copy()) for n in range(len(KEYS))),
        pa.ListArray.from_arrays(list_offsets(map(len, warnings)), texts),
    ]
    for name, kind in LISTS.items():
        arrays = [_array(tree, name) for tree in trees]
        values = number_array(kind, np.concatenate(arrays))
        columns.append(pa.ListArray.from_arrays(list_offsets(map(len, arrays)), values))
    return pa.record_batch(columns, schema=SCHEMA).serialize().to_pybytes()


def _array(tree: ExampleTree, name: str) -> npt.NDArray[Any]:
    return getattr(tree, "ids" if name == "input_ids" else name)


class _Batch(NamedTuple):
    """Where a record batch is: bytes [start, stop) of an open file; number of its first row."""

    file: int
    start: int
    stop: int
    first: int


class _Window:
    """The columns of one record batch, as views of a mapped part of its file."""

    def __init__(self, place: _Batch) -> None:
        begin = place.start - place.start % mmap.ALLOCATIONGRANULARITY
        window = mmap.mmap(place.file, place.stop - begin, access=mmap.ACCESS_READ, offset=begin)
        message = pa.ipc.read_message(pa.py_buffer(window)[place.start - begin :])
        batch = pa.ipc.read_record_batch(message, SCHEMA)
        self.rows = batch.num_rows
        self.sources, self.warnings = batch.column("source"), batch.column("warnings")
        self.keys = np.stack([batch.column(name).to_numpy() for name in KEYS], axis=1)
        columns = [batch.column(name) for name in LISTS]
        self._values = [column.values.to_numpy() for column in columns]
        self._bounds = [column.offsets.to_numpy().tolist() for column in columns]

    def tree(self, row: int) -> ExampleTree:
        arrays = [
            values[bounds[row] : bounds[row + 1]] for values, bounds in zip(self._values, self._bounds, strict=True)
        ]
        notices = tuple(notice_of(text) for text in self.warnings[row].as_py())
        return ExampleTree(self.sources[row].as_py(), notices, *arrays)


class PreparedTrees(Sequence[ExampleTree]):
    """The rows of a prepared folder by number, as views of mapped parts of its files, few of which stay mapped: memory
    does not depend on the size of the folder. The files stay open, so that they may lose their names meanwhile. Raises
    DataError where the folder is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._batches: list[_Batch] = []
        self._open: OrderedDict[int, _Window] = OrderedDict()
        self._size = 0
        with _damage_told(folder):
            for name in shard_names(folder):
                self._find_batches(folder / name)
        self._firsts = [batch.first for batch in self._batches]

    def _find_batches(self, file: Path) -> None:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, handle)
        with pa.memory_map(str(file), "rb") as source:
            reader = pa.ipc.MessageReader.open_stream(source)
            while True:
                start = source.tell()
                try:
                    message = reader.read_next_message()
                except StopIteration:
                    return
                if message.type == "record batch":
                    self._batches.append(_Batch(handle, start, source.tell(), self._size))
                    self._size += pa.ipc.read_record_batch(message, SCHEMA).num_rows

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: Any) -> ExampleTree:  # pyright: ignore[reportIncompatibleMethodOverride]
        """IndexError where there is none of this number, from 0."""
        window, row = self._place(number)
        return window.tree(row)

    def __iter__(self) -> Iterator[ExampleTree]:
        for at in range(len(self._batches)):
            window = self._window(at)
            yield from map(window.tree, range(window.rows))

    def keys(self) -> npt.NDArray[np.uint64]:
        """`RowKeys` of every row, (rows, 3)."""
        empty = np.empty((0, len(KEYS)), dtype=np.uint64)
        return np.concatenate([empty, *(self._window(at).keys for at in range(len(self._batches)))])

    def source(self, number: int) -> str:
        window, row = self._place(number)
        return window.sources[row].as_py()

    def _place(self, number: int) -> tuple[_Window, int]:
        if not 0 <= number < self._size:
            raise IndexError(number)
        at = bisect_right(self._firsts, number) - 1
        return self._window(at), number - self._firsts[at]

    def _window(self, at: int) -> _Window:
        if at not in self._open:
            if len(self._open) >= _WINDOWS:
                self._open.popitem(last=False)
            with _damage_told(self.folder):
                self._open[at] = _Window(self._batches[at])
        self._open.move_to_end(at)
        return self._open[at]


@contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{folder}: damaged prepared data ({error}): prepare it again") from None


def holds_trees(folder: Path) -> bool:
    """Whether a folder holds these rows; older versions wrote one row an example."""
    with _damage_told(folder), pa.OSFile(str(folder / shard_names(folder)[0]), "rb") as file:
        return pa.ipc.open_stream(file).schema == SCHEMA
