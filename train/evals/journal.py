"""Samples on disk as they come: appended and synced, readable after kill -9 at any moment.

    samples.jsonl               of one process, and what the shards are merged into
    samples.rank-1-of-4.jsonl   of one of several processes, until all are done

A line that a kill cut short is dropped when its file is opened again. The files are locked: two evaluations never
append to one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import DataError, RunError

SAMPLES = "samples.jsonl"
Key = tuple[str, str, str, int]
Row = dict[str, Any]


def key_of(row: Mapping[str, Any]) -> Key:
    """The key of a sample: task, item, effort, number of the sample."""
    return str(row["task"]), str(row["id"]), str(row["effort"]), int(row["sample"])


class Journal:
    """Appends rows to one file. RunError where another process does so."""

    def __init__(self, folder: Path, rank: int = 0, world: int = 1) -> None:
        self.path = folder / (SAMPLES if world == 1 else f"samples.rank-{rank}-of-{world}.jsonl")
        self._file = _locked(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._mend()

    def append(self, rows: Iterable[Row]) -> None:
        """Rows are on disk when this returns."""
        data = b"".join(encoded(row) for row in rows)
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mend(self) -> None:
        """Cut off an incomplete last line."""
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        while whole and _row(raw[raw.rfind(b"\n", 0, whole - 1) + 1 : whole]) is None:
            whole = raw.rfind(b"\n", 0, whole - 1) + 1
        if whole != len(raw):
            os.ftruncate(self._file, whole)
            os.fsync(self._file)


def _locked(path: Path, flags: int) -> int:
    """Its descriptor. RunError where another process has locked it."""
    file = os.open(path, flags, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise RunError(f"{path}: another evaluation is writing it: wait for it, or take another folder") from None
    except OSError:
        pass  # a file system without locks
    return file


def require_idle(folder: Path, own: Path | None) -> None:
    """RunError where another process has a samples file open; `own` is this one's."""
    for path in _files(folder):
        if path != own:
            os.close(_locked(path, os.O_RDWR))


def encoded(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def saved_rows(folder: Path) -> dict[Key, Row]:
    """Every complete row of all samples files of a folder, the first of each key; unreadable lines are skipped."""
    for _ in range(100):
        rows: dict[Key, Row] = {}
        try:
            for path in _files(folder):
                for row in whole_rows(path):
                    rows.setdefault(key_of(row), row)
        except FileNotFoundError:
            continue  # another process merged the shards meanwhile
        return rows
    raise RunError(f"{folder}: its files appear and disappear: is another evaluation running there?")


def whole_rows(path: Path) -> Iterator[Row]:
    """The complete rows of one file."""
    with path.open("rb") as file:
        for line in file:
            row = _row(line)
            if row is not None:
                yield row


def merge(folder: Path, keys: Sequence[Key]) -> list[Row] | None:
    """All rows in the order of `keys`, written to samples.jsonl, the shards removed; None while a row is missing."""
    found = saved_rows(folder)
    if any(key not in found for key in keys):
        return None
    rows = [found[key] for key in keys]
    target = folder / SAMPLES
    unfinished = folder / f"{SAMPLES}.{os.getpid()}.unfinished"
    with unfinished.open("wb") as file:
        file.writelines(encoded(row) for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, target)
    for path in _files(folder):
        if path != target:
            path.unlink(missing_ok=True)
    return rows


def read_samples(path: Path) -> list[Row]:
    """Rows of a finished evaluation: a samples file, a folder that holds one, an evaluation's folder (its tuned side),
    or a run folder (its `evaluation`). DataError for anything else.
    """
    places = [path / place / SAMPLES for place in (".", "tuned", "evaluation/tuned")] if path.is_dir() else [path]
    file = next((place for place in places if place.is_file()), None)
    fix = "give the folder of an evaluation, or its samples.jsonl"
    if file is None:
        raise DataError(f"{path}: no {SAMPLES} there: {fix}")
    rows: list[Row] = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        row = _row(line + b"\n")
        if row is None or not {"score", "violations"} <= row.keys():
            raise DataError(f"{file}:{number}: not a sample: {fix}")
        rows.append(row)
    return rows


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / SAMPLES, *sorted(folder.glob("samples.rank-*.jsonl"))) if path.is_file()]


def _row(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        key_of(row)
    except (ValueError, KeyError, TypeError):
        return None
    return row
