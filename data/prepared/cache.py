"""Prepared data as a cache: what it was made from, whether it is complete, and how it is moved into place atomically.

`report.json` next to the data is the manifest: fingerprint of data, settings, renderer and vocabulary, and a checksum
of every file. Data is written next to its place and renamed, so what has the final name is complete.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.configs.data_section import ConversionSettings, RenderSettings, SourceSettings
from counterpoint.configs.errors import DataError
from counterpoint.data.rows.containers import find, is_file_source, is_saved_dataset
from counterpoint.data.user_code.loader import file_of, is_function

MANIFEST = "report.json"
KIND = "counterpoint prepared rows"
_PARTIAL = ".partial-"
_REPLACED = ".replaced-"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What determines the prepared rows.

    settings: by dotted name, as a run file has them. data: path -> SHA-256 of each file, None where the bytes cannot
    be known beforehand (a data set of the hub).
    """

    settings: Mapping[str, Any]
    data: Mapping[str, str | None]
    vocabulary: str
    renderer: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def is_certain(self) -> bool:
        return None not in self.data.values()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `report.json`. files: name -> SHA-256. report: `RowCounter.as_dict`."""

    fingerprint: Fingerprint
    files: Mapping[str, str]
    report: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        value = {"kind": KIND, "fingerprint": self.fingerprint.digest, **asdict(self.fingerprint)}
        value |= {"report": self.report, "files": self.files}
        write_durably(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """None where there is none, or none that can be read."""
        try:
            value = json.loads(path.read_bytes())
            if value["kind"] != KIND:
                return None
            made_from = Fingerprint(value["settings"], value["data"], value["vocabulary"], value["renderer"])
            return cls(made_from, dict(value["files"]), dict(value["report"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def settings_of(render: RenderSettings, options: ConversionSettings) -> dict[str, Any]:
    """Settings of the renderer and the readers by dotted name, `data.weights.final` and so on."""
    sections = ("weights", "served", "bad_targets")
    flat = {name: getattr(render, name) for name in RenderSettings.model_fields if name not in sections}
    flat |= {f"{name}.{key}": value for name in sections for key, value in getattr(render, name)}
    flat |= {name: getattr(options, name) for name in ConversionSettings.model_fields}
    return {f"data.{name}": value for name, value in flat.items()}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first setting that differs, as `name: old, now new`."""
    for name in sorted(old.keys() | new.keys()):
        before, now = plain(old.get(name)), plain(new.get(name))
        if before != now:
            return f"{name} was {json.dumps(before)}, now {json.dumps(now)}"
    return None


def damaged_file(folder: Path, files: Mapping[str, str]) -> str | None:
    """The first file that is missing or does not have its checksum."""
    for name, checksum in files.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != checksum:
            return name
    return None


def data_hashes(specs: Sequence[SourceSettings]) -> dict[str, str | None]:
    """SHA-256 of every file that the sources read, None for the hub and standard input. Raises DataError."""
    hashes: dict[str, str | None] = {spec.path: None for spec in specs if not is_file_source(spec.path)}
    return hashes | {name: sha256_of(file) for name, file in data_files(specs).items()}


def data_stamps(specs: Sequence[SourceSettings]) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file that the sources read."""
    stats = {name: file.stat() for name, file in data_files(specs).items()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def data_files(specs: Sequence[SourceSettings]) -> dict[str, Path]:
    """Every file that the sources read, by the name of its source or its path, those of users' formats too; without
    data sets of the hub."""
    files = {spec.format: file_of(spec.format) for spec in specs if is_function(spec.format)}
    for spec in specs:
        if not is_file_source(spec.path):
            continue
        place = find(spec.path)
        if not place.is_dir() and is_saved_dataset(place):
            place = place.parent / place.name.partition(":")[0]
        if place.is_dir():
            files |= {str(file): file for file in sorted(place.rglob("*")) if file.is_file()}
        else:
            files[spec.path] = place
    return files


def sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check the file") from None


def write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A folder next to `target` to write in; removed with its remaining contents, like the leftovers of killed runs."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        work = target.parent / f".{target.name}{_PARTIAL}{platform.node()}-{os.getpid()}"
        work.mkdir()
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror}): choose another place with --out") from None
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def take_place(work: Path, target: Path) -> None:
    """Renames the folder `work` to `target`; a folder that already exists there is removed afterwards."""
    if not target.exists():
        os.rename(work, target)
    else:
        old = target.parent / f".{target.name}{_REPLACED}{platform.node()}-{os.getpid()}"
        os.rename(target, old)
        os.rename(work, target)
        shutil.rmtree(old, ignore_errors=True)
    sync_file(target.parent)


def sync_file(path: Path) -> None:
    """Flushes a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(target: Path) -> None:
    """Removes what dead runs of this machine left next to `target`."""
    for mark in (_PARTIAL, _REPLACED):
        for leftover in target.parent.glob(f"{glob.escape(f'.{target.name}{mark}{platform.node()}')}-*"):
            pid = leftover.name.rpartition("-")[2]
            if not pid.isdigit() or (int(pid) != os.getpid() and lives(int(pid))):
                continue
            if mark == _REPLACED and not target.exists():
                os.rename(leftover, target)
            else:
                shutil.rmtree(leftover, ignore_errors=True)


def lives(pid: int) -> bool:
    """Whether this machine has a process of that id, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(value))
