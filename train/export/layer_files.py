"""A model written layer by layer into a folder that a kill leaves usable: the same export goes on behind the last one.

progress.jsonl      line 1 what the export is; then a line a part: file, sha256, its tensors, and what was measured
model-00001-of-...  one file a layer, and one of what belongs to none
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from counterpoint.configs.errors import ModelError
from counterpoint.train.model.marker import file_hash, read_marker

PROGRESS = "progress.jsonl"
INDEX = "model.safetensors.index.json"


class LayerFiles:
    """The parts of one export in `folder`; those of another export are thrown away."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], parts: int) -> None:
        self.folder, self.parts = folder, parts
        self.records: dict[int, dict[str, Any]] = {}
        first = {"export": dict(identity), "parts": parts}
        lines = _lines(folder / PROGRESS)
        if lines and lines[0] == json.loads(json.dumps(first)):
            self.records = {line["part"]: line for line in lines[1:] if self._is_whole(line)}
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._append(first)

    def write(self, part: int, tensors: Mapping[str, torch.Tensor], measured: Any = None) -> None:
        """One part, in the order of its numbers from 0. It is complete or absent, whatever kills the process."""
        name = f"model-{part + 1:05d}-of-{self.parts:05d}.safetensors"
        unfinished = self.folder / f"{name}.unfinished"
        try:
            save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, unfinished, {"format": "pt"})
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            reason = f"{type(error).__name__}: {error}"
            raise ModelError(
                f"{unfinished}: cannot be written ({reason}): free some space (or raise `ulimit -f`), then the same "
                "command goes on behind the layers that are there"
            ) from error
        # safetensors makes files that only their owner can read, whatever the umask is.
        shutil.copymode(self.folder / PROGRESS, unfinished)
        digest = file_hash(unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, self.folder / name)
        sizes = {key: tensor.nbytes for key, tensor in tensors.items()}
        self.records[part] = {"part": part, "file": name, "sha256": digest, "tensors": sizes, "measured": measured}
        self._append(self.records[part])

    def finish(self) -> None:
        """Write the index, by which other programs find the tensors; progress.jsonl goes."""
        assert len(self.records) == self.parts
        records = [self.records[part] for part in sorted(self.records)]
        weight_map = {name: record["file"] for record in records for name in record["tensors"]}
        total = sum(size for record in records for size in record["tensors"].values())
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (self.folder / PROGRESS).unlink()

    def check(self, folder: Path) -> None:
        """ModelError where the marker of the finished folder has other hashes than the parts when they were written."""
        files = read_marker(folder)["files"]
        for record in self.records.values():
            if files.get(record["file"], {}).get("sha256") != record["sha256"]:
                raise ModelError(f"{folder / record['file']}: not as it was written: check the disk, export again")

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        path = self.folder / str(record.get("file"))
        return path.is_file() and file_hash(path) == record["sha256"]

    def _append(self, line: Mapping[str, Any]) -> None:
        with (self.folder / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that may end in the middle of one."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
