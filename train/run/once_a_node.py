"""A folder that the first process of a machine fills and the others of the same run read."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState

from counterpoint.configs.errors import CounterpointError, DataError, RunError
from counterpoint.configs.schema import TrainingRun
from counterpoint.data.prepared.cache import lives
from counterpoint.train.run.session import agreed
from counterpoint.train.run.world import world_size

_BEGUN, _DONE = "begun.json", "done.json"
_SECONDS = 0.1


@contextmanager
def once_a_node(settings: TrainingRun, parent: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A folder in `parent` that `make` has filled, in the first process of each machine; it is removed when all
    processes have left the block. An error of `make` is raised in all of them.

    Without LOCAL_RANK no process knows which is the first, and each fills a folder of its own.
    """
    local = os.environ.get("LOCAL_RANK")
    alone = world_size() == 1 or local is None
    token = secrets.token_hex(4) if alone else agreed(lambda: secrets.token_hex(4), settings)
    folder = parent / f".rows-{platform.node()}-{token}"
    first = alone or local == "0"
    try:
        _fill(folder, make) if first else _wait(folder)
        yield folder
        if not alone:
            PartialState().wait_for_everyone()  # Collective: whoever comes here has opened the files.
    finally:
        if first:
            shutil.rmtree(folder, ignore_errors=True)


def _fill(folder: Path, make: Callable[[Path], None]) -> None:
    folder.mkdir(parents=True)
    _write(folder / _BEGUN, {"pid": os.getpid()})
    try:
        make(folder)
    except CounterpointError as error:
        _write(folder / _DONE, {"error": str(error)})
        time.sleep(2 * _SECONDS if world_size() > 1 else 0)  # The others read it before the folder goes.
        raise
    _write(folder / _DONE, {})


def _wait(folder: Path) -> None:
    while not (folder / _DONE).exists():
        if (folder / _BEGUN).exists() and not lives(int(json.loads((folder / _BEGUN).read_text())["pid"])):
            raise RunError(f"{folder}: the process that read the data has ended: see its own last lines")
        time.sleep(_SECONDS)
    told = json.loads((folder / _DONE).read_text())
    if "error" in told:
        raise DataError(told["error"])


def _write(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.rename(path)
