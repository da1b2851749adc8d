"""The marker of a complete folder: `complete.json` names every file with its size and sha256, and has a checksum of its
own. It is asked wherever weights are read, not only where they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ModelError

MARKER = "complete.json"
UNFINISHED = "not finished (the run was stopped while it was written)"
_SEAL = "checksum"
_READ_BYTES = 1 << 20


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a marker with its own checksum."""
    return {**content, _SEAL: _checksum(content)}


def read_marker(folder: Path) -> dict[str, Any]:
    """What a folder's marker holds. ValueError where it cannot be read, or is not as it was written."""
    try:
        content = json.loads((folder / MARKER).read_bytes())
        seal = content.pop(_SEAL)
        content["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{MARKER} cannot be read") from None
    if seal != _checksum(content):
        raise ValueError(f"{MARKER} is damaged (its own checksum differs)")
    return content


def why_broken(folder: Path, weights_only: bool = False) -> str | None:
    """None for a folder that equals its marker byte for byte; else what is wrong with it.

    weights_only: of a checkpoint, leave out what only training reads.
    """
    if not (folder / MARKER).is_file():
        return UNFINISHED
    try:
        files = read_marker(folder)["files"]
    except ValueError as error:
        return str(error)
    for name, expected in files.items():
        if weights_only and not name.endswith((".safetensors", ".json")):
            continue
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if file_hash(path) != expected["sha256"]:
            return f"{name} is damaged (its sha256 differs)"
    return None


def require_whole(folder: Path) -> None:
    """ModelError where a folder has a marker and its weights are not what the marker says. Others have no marker."""
    if (folder / MARKER).is_file() and (fault := why_broken(folder, weights_only=True)) is not None:
        raise ModelError(
            f"{folder}: {fault}: take another copy or another checkpoint of the run (if you changed it yourself, "
            f"remove {MARKER})"
        )


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
