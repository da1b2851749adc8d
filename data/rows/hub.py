"""Rows of Hugging Face data sets: by name (streamed) or from a folder that `save_to_disk` wrote.

`hf:NAME`, `hf:NAME:SPLIT`, `hf:NAME@CONFIG:SPLIT`; `FOLDER` or `FOLDER:SPLIT`. `datasets` is imported here only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import DataError, NoDataError
from counterpoint.data.rows.row import BadRow, RawRow
from counterpoint.data.rows.tables import arrow_row


def hub_rows(name: str) -> Iterator[RawRow | BadRow]:
    """Rows of `hf:...`, by their number from 1. Raises DataError where it cannot be loaded."""
    import datasets

    path, _, split = name.removeprefix("hf:").partition(":")
    path, _, config = path.partition("@")
    try:
        rows = datasets.load_dataset(path, config or None, split=split or "train", streaming=True)
    except Exception as error:  # the library raises dozens of types, each a user's mistake or the network
        raise NoDataError(f"{name}: cannot be loaded ({_reason(error)}): check name, split and network") from None
    yield from _numbered(rows, name)


def saved_rows(place: Path, name: str) -> Iterator[RawRow | BadRow]:
    """Rows of a data set folder, by their number from 1. Raises DataError where it cannot be loaded."""
    import datasets

    folder, split = (place, "") if place.is_dir() else (place.parent / place.name.partition(":")[0], "")
    if not place.is_dir():
        split = place.name.partition(":")[2]
    try:
        data: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # as above
        raise DataError(f"{name}: cannot be loaded ({_reason(error)}): save the data set again") from None
    if isinstance(data, datasets.DatasetDict):
        splits = [str(s) for s in data]
        if not split and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            choices = " or ".join(f"{folder}:{s}" for s in splits)
            raise DataError(f"{name}: holds the splits {', '.join(splits)}: write {choices}")
        data = data[split]
    yield from _numbered(data, name)


def _numbered(rows: Any, name: str) -> Iterator[RawRow | BadRow]:
    number = 0
    iterator = iter(rows)
    while True:
        try:
            value = next(iterator)
        except StopIteration:
            break
        except Exception as error:  # a damaged shard, or the network in the middle
            raise DataError(f"{name}: stopped after row {number} ({_reason(error)}): load it again") from None
        number += 1
        yield arrow_row(f"{name}:{number}", value)
    if not number:
        yield BadRow(f"{name}:1", "empty_file", "row", "the data set holds no rows", "choose another split")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"
