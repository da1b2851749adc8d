"""A data file as bytes, whether it is packed or not."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import BinaryIO, cast

from counterpoint.configs.errors import DataError


def open_bytes(file: Path) -> BinaryIO:
    """The file's bytes, unpacked where its name ends in .gz. Raises DataError."""
    try:
        return cast(BinaryIO, gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}): check the path and its permissions") from None
