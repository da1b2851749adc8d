"""A data file as bytes, whether it is packed or not, and the limit of what one row may hold."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from counterpoint.configs.errors import DataError

MOST_BYTES = 16 << 20
"""Of one row, unpacked: gpt-oss's whole context is under 1 MB of text, and a packed file of 4 MB can hold gigabytes."""
TOO_LONG, SPLIT = f"longer than {MOST_BYTES >> 20} MB", "split it into several rows, or cut its longest text"
_KEPT = 1000


# How files begin that are not what their names say.
_MAGIC = (
    (b"\x1f\x8b", "is packed with gzip", "name it {name}.gz"),
    (b"PK\x03\x04", "is an Excel file or a zip archive", "save the table as CSV (UTF-8), or unpack it"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel file", "save the table as CSV (UTF-8)"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd", "unpack it, or pack it with gzip"),
    (b"BZh", "is packed with bzip2", "unpack it, or pack it with gzip"),
    (b"PAR1", "is a Parquet file", "name it {name}.parquet"),
)


def open_bytes(file: Path) -> BinaryIO:
    """The file's bytes, unpacked where its name ends in .gz. Raises DataError, for what is no text too."""
    try:
        if file.suffix != ".gz" and file.is_file():
            with file.open("rb") as stream:
                head = stream.read(4)
            for magic, what, fix in _MAGIC:
                if head.startswith(magic):
                    raise DataError(f"{file}: {what}: {fix.format(name=file.name)}")
        return cast(BinaryIO, gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}): check the path and its permissions") from None


def limited_lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Lines with their ends, and whether each is whole: of one that is too long there is only the beginning."""
    while line := stream.readline(MOST_BYTES + 1):
        if len(line) <= MOST_BYTES or line.endswith(b"\n"):
            yield line, True
            continue
        beginning = line[:_KEPT]
        while (line := stream.readline(1 << 20)) and not line.endswith(b"\n"):
            pass
        yield beginning, False
