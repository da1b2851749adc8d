"""Rows of a file, whatever holds them, one at a time: memory does not grow with the file."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import BinaryIO, cast

from counterpoint.configs.errors import DataError, RowError
from counterpoint.data.conversation import Notice
from counterpoint.data.sources.rows import BadRow, RawRow
from counterpoint.data.sources.strict_json import BOM, loads

EXAMPLE = "example:"


def read_rows(path: str | Path) -> Iterator[RawRow | BadRow]:
    """Rows of a source, bad ones in their place. Raises DataError where there is no such source."""
    file = find(str(path))
    yield from _jsonl(file, str(path))


def find(path: str) -> Path:
    """The file or folder that `path` names. Raises DataError."""
    if path.startswith(EXAMPLE):
        file = Path(str(resources.files("counterpoint.data.examples").joinpath(f"{path.removeprefix(EXAMPLE)}.jsonl")))
        if not file.is_file():
            names = sorted(p.stem for p in file.parent.glob("*.jsonl"))
            raise DataError(f"{path}: no such example: write one of {', '.join(EXAMPLE + n for n in names)}")
        return file
    file = Path(path)
    if not file.exists():
        raise DataError(f"{path}: no such file or folder: check the path")
    return file


def open_bytes(file: Path) -> BinaryIO:
    """The file's bytes, unpacked where its name ends in .gz. Raises DataError."""
    try:
        return cast(BinaryIO, gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}): check the path and its permissions") from None


def _jsonl(file: Path, name: str) -> Iterator[RawRow | BadRow]:
    empty, blank = True, 0
    with open_bytes(file) as lines:
        for number, line in enumerate(lines, 1):
            source = f"{name}:{number}"
            notices: list[Notice] = []
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
                notices.append(Notice("blank_line", "row", f"{blank} blank lines before it were passed over"))
                blank = 0
            empty = False
            try:
                value = loads(text)
            except RowError as error:
                yield BadRow(source, error.kind, error.field, error.what, error.fix, text)
                continue
            yield RawRow(source, text, value, tuple(notices))
    if empty:
        yield BadRow(f"{name}:1", "empty_file", "row", "the file holds no rows", "write one JSON object a line")
