"""What a run pins of its base: the commit of a Hugging Face name, and the hash of every weight file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.utils.hub import extract_commit_hash

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import EMBEDDED_MODEL, ModelSettings
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import snapshot_of
from counterpoint.train.model.marker import file_hash

_SHA256 = re.compile(r"[0-9a-f]{64}")


def base_pin(model: ModelSettings) -> dict[str, Any]:
    """`name`, `revision` (the commit, None for a folder) and `files`: sha256 by name of the weights that are read.

    `init: random` reads none. A name of the hub is downloaded; its files are stored under their hashes, while those of
    a folder are read once (seconds to a minute for 13 to 40 GB).
    """
    if model.init == "random":
        return {"name": model.name, "revision": None, "files": {}}
    folder = tiny_folder() if model.name == EMBEDDED_MODEL else snapshot_of(model)
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_hash, files))
    local = model.name == EMBEDDED_MODEL or Path(model.name).expanduser().is_dir()
    revision = None if local else extract_commit_hash(str(folder / "config.json"), None)
    return {"name": model.name, "revision": revision, "files": {f.name: h for f, h in zip(files, hashes, strict=True)}}


def check_same_base(pinned: Mapping[str, Any] | None, now: Mapping[str, Any], where: str) -> None:
    """ModelError where the weights of `now` are not those of `pinned`; None is of a version that pinned nothing."""
    if pinned is None or pinned["files"] == now["files"]:
        return
    then, here = pinned["files"], now["files"]
    names = [name for name in sorted({*then, *here}) if then.get(name) != here.get(name)]
    shown = " -> ".join((files.get(names[0]) or "none")[:12] for files in (then, here))
    raise ModelError(
        f"{where}: it was made on another base: {now['name']} has a different {names[0]} (sha256 {shown}; "
        f"{len(names)} of {len({*then, *here})} files differ): restore the base, or name the right one as model.name"
    )


def _hash(file: Path) -> str:
    stored = file.resolve()
    if stored.parent.name == "blobs" and _SHA256.fullmatch(stored.name):
        return stored.name
    return file_hash(file)
