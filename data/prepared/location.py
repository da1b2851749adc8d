"""Where prepared data is: a folder of Arrow shards, or a JSONL file with its companions next to it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from counterpoint.configs.errors import DataError
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.prepared import cache
from counterpoint.data.prepared.cache import Fingerprint, Manifest

Output = Literal["arrow", "jsonl"]
LINES, PAGE, STATISTICS = "lines.jsonl", "statistics.html", "statistics.json"
_OURS = re.compile(
    r"data-\d+-of-\d+\.arrow|(cache|tmp).*|state\.json|dataset_info\.json|statistics\.(html|json)|report\.json"
)


@dataclass(frozen=True, slots=True)
class Place:
    """The target of one `prepare`."""

    target: Path
    output: Output

    @property
    def manifest(self) -> Path:
        return self.target / cache.MANIFEST if self.output == "arrow" else self._beside(cache.MANIFEST)

    @property
    def page(self) -> Path:
        return self.target / PAGE if self.output == "arrow" else self._beside(PAGE)

    def check(self, settings: Mapping[str, Any], overwrite: bool) -> None:
        """Raises DataError where `target` must not be written: other settings, or files that are not prepare's."""
        target = self.target
        if not target.exists() or _is_empty(target):
            return
        if target.is_dir() != (self.output == "arrow"):
            kind, other = ("folder", "a file") if target.is_dir() else ("file", "a folder")
            raise DataError(f"{target}: is a {kind}; --out X.jsonl writes a file, any other name a folder, not {other}")
        strangers = self._strangers()
        if strangers:
            raise DataError(f"{target}: holds {strangers[0]}, which prepare did not write: choose another folder")
        if overwrite:
            return
        if not self.manifest.is_file():
            raise DataError(f"{target}: exists and was not written by prepare: choose another name, or --overwrite")
        manifest = Manifest.read(self.manifest)
        if manifest is not None and (changed := cache.difference(manifest.fingerprint.settings, settings)):
            raise DataError(
                f"{target}: holds data that was prepared with other settings ({changed}): "
                "choose another name, or --overwrite"
            )

    def cached(self, fingerprint: Fingerprint) -> RowCounter | str:
        """The report of the data there, if it is complete and matches `fingerprint`; else why not."""
        if not self.target.exists() or _is_empty(self.target):
            return ""
        manifest = Manifest.read(self.manifest)
        if manifest is None:
            return f"{self.manifest.name} is damaged"
        before = manifest.fingerprint
        if before.digest != fingerprint.digest:
            for what, old, new in (
                ("the data", before.data, fingerprint.data),
                ("the settings", before.settings, fingerprint.settings),
                ("the vocabulary", before.vocabulary, fingerprint.vocabulary),
            ):
                if cache.plain(old) != cache.plain(new):
                    return f"{what} changed"
            return "the renderer changed"
        if not fingerprint.is_certain:
            return "a data set of the hub may have changed"
        if damaged := cache.damaged_file(self._folder, manifest.files):
            return f"{damaged} is damaged"
        return RowCounter.from_dict(manifest.report)

    def fill(self, work: Path, fingerprint: Fingerprint, report: RowCounter) -> None:
        """Moves the files in the folder `work` to their place."""
        if self.output == "arrow":
            self._write_manifest(work / cache.MANIFEST, work, fingerprint, report)
            cache.take_place(work, self.target)
            return
        os.rename(work / LINES, work / self.target.name)
        for name in (PAGE, STATISTICS):
            os.rename(work / name, work / self._beside(name).name)
        self._write_manifest(work / self.manifest.name, work, fingerprint, report)
        self.manifest.unlink(missing_ok=True)
        for path in (self.target, self._beside(PAGE), self._beside(STATISTICS), self.manifest):
            os.replace(work / path.name, path)
        cache.sync_file(self._folder)

    def _write_manifest(self, path: Path, work: Path, fingerprint: Fingerprint, report: RowCounter) -> None:
        files = {file.name: cache.sha256_of(file) for file in sorted(work.iterdir())}
        for file in work.iterdir():
            cache.sync_file(file)
        Manifest(fingerprint, files, report.as_dict()).write(path)

    @property
    def _folder(self) -> Path:
        return self.target if self.output == "arrow" else self.target.parent

    def _beside(self, name: str) -> Path:
        return self.target.with_name(f"{self.target.stem}.{name}")

    def _strangers(self) -> list[str]:
        names = sorted(os.listdir(self.target)) if self.output == "arrow" else []
        return [name for name in names if not _OURS.fullmatch(name)]


def _is_empty(path: Path) -> bool:
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0
