"""Rows of tables: Parquet and CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from counterpoint.configs.errors import DataError
from counterpoint.data.conversation import Notice
from counterpoint.data.rows.open_file import MOST_BYTES, SPLIT, TOO_LONG, limited_lines, open_bytes
from counterpoint.data.rows.row import BadRow, RawRow
from counterpoint.data.rows.strict_json import BOM

_BATCH = 64


def parquet_rows(file: Path, name: str) -> Iterator[RawRow | BadRow]:
    """Rows of a Parquet file, by their number from 1. Raises DataError where it is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a Parquet file ({_first_line(error)}): write it again") from None
    number = 0
    with table:
        try:
            for batch in table.iter_batches(batch_size=_BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield arrow_row(f"{name}:{number}", value)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            what = f"the file is damaged after row {number} ({_first_line(error)})"
            yield BadRow(f"{name}:{number + 1}", "damaged_parquet", "row", what, "write the file again")


def arrow_row(source: str, value: dict[str, Any]) -> RawRow | BadRow:
    """A row that Arrow gave: in it, `null` is what an absent key looks like, so nulls are taken away."""
    raw = orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    if len(raw) > MOST_BYTES:
        return BadRow(source, "row_too_long", "row", TOO_LONG, SPLIT, raw[:1000])
    notices: list[Notice] = []
    pruned = {key: _without_nulls(child, key, notices) for key, child in value.items() if child is not None}
    return RawRow(source, raw, pruned, tuple(notices))


class Padded(dict[str, Any]):
    """Arguments of a call without their nulls. names: of all, in Arrow's order, those that were null too: some schemas
    require them."""

    names: tuple[str, ...] = ()


_ARGUMENTS = ("arguments", "args", "input")


def _without_nulls(value: Any, path: str, notices: list[Notice], padded: bool = False) -> Any:
    if isinstance(value, dict):
        if path.endswith("arguments") and None in value.values():
            notices.append(Notice("null_arguments", path, "null arguments were left out: Arrow writes absent keys so"))
        named = value.get("name") is not None
        pruned: dict[str, Any] = Padded() if padded else {}
        for key, child in value.items():
            if child is not None:
                inside = padded or (named and key in _ARGUMENTS)
                pruned[key] = _without_nulls(child, f"{path}.{key}", notices, inside)
        if isinstance(pruned, Padded):
            pruned.names = tuple(value)
        return pruned
    if isinstance(value, list):
        return [_without_nulls(v, f"{path}[{i}]", notices, padded) for i, v in enumerate(value)]
    return value


def csv_rows(file: Path, name: str) -> Iterator[RawRow | BadRow]:
    """Rows of a CSV (or, by its name, TSV) file with a header, by the line that they begin on."""
    csv.field_size_limit(sys.maxsize)
    with open_bytes(file) as stream:
        if stream.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            yield BadRow(f"{name}:1", "bad_utf8", "row", "the file is UTF-16, not UTF-8", "save it as UTF-8")
            return
        stream.seek(0)
        delimiter, notices = _delimiter(stream, "\t" if ".tsv" in file.suffixes else ",")
        stream.seek(0)
        lines = _Lines(stream, name)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            lines.start()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                source = f"{name}:{lines.first}"
                yield BadRow(source, "bad_csv", "row", f"not CSV ({error})", "close the quotes", lines.raw())
                continue
            if header is None:
                header = cells
            elif cells:
                yield _csv_row(f"{name}:{lines.first}", header, cells, lines.raw(), notices)
                notices = ()


def _delimiter(stream: BinaryIO, usual: str) -> tuple[str, tuple[Notice, ...]]:
    """What separates the columns of a header: the usual sign, or where that is not in it `;` or a tab, as Excel writes
    them in some countries."""
    line, _ = next(limited_lines(stream), (b"", True))
    header = line.decode("utf-8", errors="replace")
    if usual in header:
        return usual, ()
    other = max((";", "\t", ","), key=header.count)
    if not header.count(other):
        return usual, ()
    return other, (Notice("csv_delimiter", "row", f"columns are separated by {other!r}"),)


def _csv_row(
    source: str, header: list[str], cells: list[str], raw: bytes, notices: tuple[Notice, ...]
) -> RawRow | BadRow:
    if len(cells) != len(header):
        what = f"{len(cells)} cells under {len(header)} columns"
        return BadRow(source, "csv_columns", "row", what, "quote cells that hold commas or line breaks", raw)
    for column, cell in zip(header, cells, strict=True):
        if any("\udc80" <= c <= "\udcff" for c in cell):
            return BadRow(source, "bad_utf8", column, "not UTF-8", "save the file as UTF-8", raw)
    return RawRow(source, raw, {column: cell for column, cell in zip(header, cells, strict=True) if cell}, notices)


class _Lines:
    """Text lines of a byte stream that remember the bytes since `start`."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._lines, self._name = limited_lines(stream), name
        self._kept: list[bytes] = []
        self._size = 0
        self._number = 0
        self.first = 1

    def start(self) -> None:
        self._kept, self._size = [], 0
        self.first = self._number + 1

    def raw(self) -> bytes:
        return b"".join(self._kept).rstrip(b"\r\n")

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line, whole = next(self._lines)
        self._number += 1
        self._size += len(line)
        if not whole or self._size > MOST_BYTES:
            raise DataError(f"{self._name}:{self.first}: a row is {TOO_LONG}: {SPLIT}, or close its quotes")
        self._kept.append(line)
        if self._number == 1:
            line = line.removeprefix(BOM)
        return line.decode("utf-8", errors="surrogateescape")


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
