"""Folders that are either complete or absent, whatever kills the process while they are written.

    checkpoints/
        step-000100/             complete: its marker `complete.json` names every file with size and sha256
        step-000200/             renamed but not marked (killed between the two): not a checkpoint
        .partial-step-000300/    being written, or left by a kill: not a checkpoint

Order of a save: write into the partial folder, sync every file, rename the folder into place, sync its parent, write
the marker and sync it. Only then are older checkpoints rotated out; a rotated one loses its marker first.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from counterpoint.configs.errors import RunError
from counterpoint.train.model.marker import MARKER, file_hash, sealed

PARTIAL = ".partial-"
REPLACED = ".replaced-"
STEP_FOLDER = re.compile(r"step-(\d+)")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def checkpoint_name(step: int) -> str:
    """`step-000100`; sorts by name up to a million steps, and is read back by `step_of` beyond."""
    return f"step-{step:06d}"


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint folder's name; None for any other name."""
    match = STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def write_folder(
    target: Path, fill: Callable[[Path], None], details: Mapping[str, Any], expected_bytes: int = 0
) -> Path:
    """Let `fill` write files into a folder next to `target`, then put it in place and mark it complete.

    details: goes into the marker with the list of files. expected_bytes: what the folder will take, 0 if unknown.
    RunError when the disk is full: the partial folder is gone, and whatever was at `target` is unchanged.
    """
    partial = begin_folder(target, expected_bytes)
    try:
        fill(partial)
        return finish_folder(partial, target, details)
    except BaseException as error:
        abandon_folder(partial, target, error, expected_bytes)
        raise


def begin_folder(target: Path, expected_bytes: int = 0) -> Path:
    """Make the empty partial folder for `target`. RunError when `expected_bytes` do not fit on the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f"{PARTIAL}{target.name}"
    if partial.exists():
        shutil.rmtree(partial)
    free = shutil.disk_usage(target.parent).free
    if free < expected_bytes:
        raise _disk_full(target, expected_bytes, free)
    partial.mkdir()
    return partial


def finish_folder(partial: Path, target: Path, details: Mapping[str, Any]) -> Path:
    """Sync the partial folder, rename it to `target` (an existing folder is replaced), and mark it complete."""
    files = _sync_tree(partial)
    replaced = target.parent / f"{REPLACED}{target.name}"
    if target.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        os.rename(target, replaced)
    os.rename(partial, target)
    _sync_folder(target.parent)
    _write_marker(target, {**details, "files": files})
    if replaced.exists():
        shutil.rmtree(replaced)
    return target


def abandon_folder(partial: Path, target: Path, error: BaseException, expected_bytes: int = 0) -> None:
    """Remove what a failed save left; RunError (from `error`) when the cause was a full disk."""
    written = folder_bytes(partial) if partial.exists() else 0
    free = shutil.disk_usage(target.parent).free
    full = is_disk_full(error) or (isinstance(error, Exception) and free < max(expected_bytes - written, 1))
    shutil.rmtree(partial, ignore_errors=True)
    replaced = target.parent / f"{REPLACED}{target.name}"
    if target.exists() and not (target / MARKER).exists():
        shutil.rmtree(target, ignore_errors=True)
    if replaced.exists() and not target.exists():
        os.rename(replaced, target)
    if (limit := _file_limit(error)) is not None:
        raise RunError(
            f"{target}: a file of it is larger than this process may write (`ulimit -f`: {_size(limit)}): raise that, "
            "and continue with --resume; earlier checkpoints are intact"
        ) from error
    if full:
        raise _disk_full(target, max(expected_bytes, written + 1), free) from error


def rotate(parent: Path, keep: int, spared: int | None = None) -> list[Path]:
    """Remove all but the newest `keep` complete checkpoints under `parent` (0 keeps all), and but that of step
    `spared`; returns what was removed."""
    complete = [folder for folder in checkpoints_in(parent) if (folder / MARKER).exists()]
    gone = [folder for folder in (complete[:-keep] if keep > 0 else []) if step_of(folder) != spared]
    for folder in gone:
        remove(folder)
    return gone


def remove(folder: Path) -> None:
    """Remove a checkpoint; killed in between, it is not taken for a complete one."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder)


def clean_partial(parent: Path) -> list[Path]:
    """Remove what killed saves left under `parent`: partial folders and unmarked checkpoints; returns what was removed.

    Only for the process that holds the run's lock.
    """
    if not parent.is_dir():
        return []
    for replaced in sorted(parent.glob(f"{REPLACED}*")):
        target = parent / replaced.name.removeprefix(REPLACED)
        if not (target / MARKER).exists() and (replaced / MARKER).exists():
            shutil.rmtree(target, ignore_errors=True)
            os.rename(replaced, target)
    leftovers = [folder for folder in parent.iterdir() if folder.name.startswith((PARTIAL, REPLACED))]
    leftovers += [folder for folder in checkpoints_in(parent) if not (folder / MARKER).exists()]
    for folder in leftovers:
        shutil.rmtree(folder)
    return sorted(leftovers)


def checkpoints_in(parent: Path) -> list[Path]:
    """Every `step-*` folder under `parent`, oldest first, complete or not."""
    if not parent.is_dir():
        return []
    steps = {folder: step_of(folder) for folder in parent.iterdir() if folder.is_dir()}
    return sorted((folder for folder, step in steps.items() if step is not None), key=lambda f: steps[f] or 0)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is a full disk; the writers of torch and safetensors lose the errno."""
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno in _DISK_FULL:
            return True
        if "No space left on device" in str(each) or "Disk quota exceeded" in str(each):
            return True
    return False


def _file_limit(error: BaseException) -> int | None:
    """The limit of a file's size, where `error` is that it was reached; torch's writer loses the reason."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY or not isinstance(error, OSError | RuntimeError | SafetensorError):
        return None
    texts = ("File too large", "file write failed", "unexpected pos")
    return limit if any(text in str(each) for each in _causes(error) for text in texts) else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sync_tree(folder: Path) -> dict[str, dict[str, Any]]:
    """Sync every file and folder under `folder`; returns size and hash of each file."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    _sync_folder(folder)
    return files


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_marker(folder: Path, content: Mapping[str, Any]) -> None:
    unfinished = folder / f"{MARKER}.unfinished"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(sealed(content), file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / MARKER)
    _sync_folder(folder)


def _disk_full(target: Path, needed: int, free: int) -> RunError:
    return RunError(
        f"{target}: the disk is full: {_size(needed)} are needed, {_size(free)} are free: free some space "
        "(train.keep_checkpoints lowers what a run keeps) and continue with --resume; earlier checkpoints are intact"
    )


def _size(n_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} bytes"
