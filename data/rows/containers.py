"""Rows of a source, whatever holds them, one at a time: memory does not grow with the file.

JSONL, JSON (an array, one object, or objects one after another), CSV and TSV, each also packed with gzip; Parquet; text
files with raw Harmony; a folder of such files; a Hugging Face data set by name or as a folder; a packaged example; JSON
lines from standard input (`-`).
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from counterpoint.configs.errors import DataError, NoDataError, RowError
from counterpoint.data.conversation import Notice
from counterpoint.data.rows.json_scanner import Element, Scanner
from counterpoint.data.rows.open_file import MOST_BYTES, SPLIT, TOO_LONG, limited_lines, open_bytes
from counterpoint.data.rows.row import AnyRow, BadRow, RawRow, UnreadRow, read
from counterpoint.data.rows.strict_json import BOM, loads
from counterpoint.data.rows.text_files import is_companion, text_rows

EXAMPLE = "example:"
HUB = "hf:"
STDIN = "-"
SUFFIXES = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".traj": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".harmony": "text",
}
_HEAD = 1 << 16
Rows = Iterator[AnyRow]


def read_rows(path: str | Path) -> Iterator[RawRow | BadRow]:
    """Rows of a source, bad ones in their place. Raises DataError where there is no such source."""
    return map(read, unread_rows(path))


def unread_rows(path: str | Path) -> Rows:
    """`read_rows` whose JSON is left as bytes where the container allows it."""
    name = str(path)
    if name.startswith(HUB):
        from counterpoint.data.rows.hub import hub_rows

        yield from hub_rows(name)
        return
    if name == STDIN:
        yield from _lines_of(sys.stdin.buffer, STDIN, 1)
        return
    place = find(name)
    if is_saved_dataset(place):
        from counterpoint.data.rows.hub import saved_rows

        yield from saved_rows(place, name)
    elif place.is_dir():
        files, _ = list_files(place)
        if not files:
            raise DataError(f"{name}: holds no data file: write files that end in {', '.join(SUFFIXES)}")
        for file in files:
            yield from _file_rows(file, str(file))
    else:
        yield from _file_rows(place, name)


def find(path: str) -> Path:
    """The file or folder that `path` names. Raises DataError."""
    if path.startswith(EXAMPLE):
        folder = Path(str(resources.files("counterpoint.data.examples")))
        name = path.removeprefix(EXAMPLE)
        file = folder / (name if name.endswith(".json") else f"{name}.jsonl")
        if not file.is_file() or file.parent != folder:
            names = sorted(EXAMPLE + p.stem for p in folder.glob("*.jsonl"))
            raise DataError(f"{path}: no such example: write one of {', '.join(names)}")
        return file
    place = Path(path)
    if not place.exists() and not is_saved_dataset(place.parent / place.name.partition(":")[0]):
        raise NoDataError(f"{path}: no such file or folder: check the path")
    return place


def is_saved_dataset(place: Path) -> bool:
    """Whether a folder is what `Dataset.save_to_disk` writes (`folder:split` names a split of one)."""
    folder = place if place.is_dir() else place.parent / place.name.partition(":")[0]
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def list_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Data files of a folder and of the folders in it, in order of their names; and the files that are skipped."""
    files, others = [], []
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and not hidden and not is_companion(file):
            (files if _kind(file) else others).append(file)
    return files, others


def _kind(file: Path) -> str | None:
    suffixes = [s.lower() for s in file.suffixes if s.lower() != ".gz"]
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def _file_rows(file: Path, name: str) -> Rows:
    kind = _kind(file) or "json"
    empty = True
    try:
        for row in _rows_of_kind(file, name, kind):
            empty = False
            yield row
    except (EOFError, gzip.BadGzipFile) as error:
        empty = False
        yield BadRow(f"{name}:1", "damaged_gzip", "row", f"the packed file is damaged ({error})", "pack it again")
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error}): check the file") from None
    if empty:
        yield BadRow(f"{name}:1", "empty_file", "row", "the file holds no rows", "write one JSON object a line")


def _rows_of_kind(file: Path, name: str, kind: str) -> Rows:
    if kind in ("parquet", "csv"):
        from counterpoint.data.rows.tables import csv_rows, parquet_rows

        return parquet_rows(file, name) if kind == "parquet" else csv_rows(file, name)
    if kind == "text":
        return text_rows(file, name)
    if is_document(file, kind):
        return _document_rows(file, name)
    return _line_rows(file, name)


def is_document(file: Path, kind: str) -> bool:
    """Whether a file is one JSON document rather than a value a line."""
    with open_bytes(file) as stream:
        head = stream.read(_HEAD).removeprefix(BOM).lstrip()
        first, newline, rest = head.partition(b"\n")
        if kind == "lines":
            return first.strip() in (b"[", b"{")
        if not newline:
            return head.startswith(b"[") or not _is_value(first + stream.readline(MOST_BYTES))
        if head.startswith(b"["):
            return not (_is_value(first) and rest.strip())
        return not _is_value(first)


def _is_value(raw: bytes) -> bool:
    try:
        loads(raw)
    except RowError as error:
        return error.kind not in ("truncated", "not_json")
    return True


def is_file_source(path: str) -> bool:
    """Whether a source is files, whose bytes can be looked at before they are read."""
    return path != STDIN and not path.startswith(HUB)


def rows_from_line(path: str, first: int) -> Rows | None:
    """Unread rows from line `first` on, the lines before skipped; None where a row is no line of a file."""
    place = find(path) if is_file_source(path) else None
    if place is None or not place.is_file() or place.suffix == ".gz":
        return None
    kind = _kind(place) or "json"
    if kind not in ("lines", "json") or is_document(place, kind):
        return None
    return _line_rows(place, path, first)


def _line_rows(file: Path, name: str, first: int = 1) -> Rows:
    with open_bytes(file) as stream:
        yield from _lines_of(stream, name, first)


def _lines_of(stream: BinaryIO, name: str, first: int) -> Rows:
    blank = 0
    for number, (line, whole) in enumerate(islice(limited_lines(stream), first - 1, None), first):
        notices: list[Notice] = []
        if not whole:
            yield BadRow(f"{name}:{number}", "row_too_long", "row", TOO_LONG, SPLIT, line)
            continue
        if number == 1 and line.startswith(BOM):
            line = line[len(BOM) :]
            notices.append(Notice("bom", "row", "the file begins with a byte order mark"))
        if line.endswith(b"\r\n"):
            notices.append(Notice("crlf", "row", "the line ends in CR LF"))
        text = line.rstrip(b"\r\n")
        if not text.strip(b" \t"):
            blank += 1
            continue
        if blank:
            notices.append(Notice("blank_line", "row", f"{blank} blank lines before it were skipped"))
            blank = 0
        yield UnreadRow(f"{name}:{number}", text, tuple(notices))


def _document_rows(file: Path, name: str) -> Rows:
    with open_bytes(file) as stream:
        head = stream.read(len(BOM))
        notices = (Notice("bom", "row", "the file begins with a byte order mark"),) if head == BOM else ()
        if head != BOM:
            stream.seek(0)
        scanner = Scanner(stream, name)
        line, on_line = 0, 0
        for index, element in enumerate(scanner.elements()):
            line, on_line = element.line, on_line + 1 if element.line == line else 1
            source = f"{name}:{line}" if on_line == 1 else f"{name}:{line}[{on_line}]"
            if index == 0 and scanner.is_array and _is_message(element):
                stream.seek(0)
                raw = stream.read(MOST_BYTES + 1)
                if len(raw) > MOST_BYTES:
                    yield BadRow(f"{name}:1", "row_too_long", "row", TOO_LONG, SPLIT, raw[:1000])
                else:
                    yield UnreadRow(f"{name}:1", raw.removeprefix(BOM), notices)
                return
            if len(element.raw) > MOST_BYTES:
                yield BadRow(source, "row_too_long", "row", TOO_LONG, SPLIT, element.raw[:1000])
            elif scanner.closed:
                what = "something follows the end of the array"
                yield BadRow(source, "not_json", "row", what, "write one array", element.raw)
            elif not element.complete and scanner.is_array:
                what = f"element {index + 1} of the array ends early"
                yield BadRow(source, "truncated", "row", what, "write the row again", element.raw)
            else:
                yield UnreadRow(source, element.raw, notices)
            notices = ()
        if scanner.is_array and not scanner.closed:
            yield BadRow(f"{name}:1", "truncated", "row", "the array is not closed", "write the file again")


def _is_message(element: Element) -> bool:
    """Whether an array holds the messages of one conversation instead of rows."""
    try:
        value = loads(element.raw)
    except RowError:
        return False
    return isinstance(value, dict) and (
        ("role" in value and ("content" in value or "tool_calls" in value)) or ("from" in value and "value" in value)
    )
