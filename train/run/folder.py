"""The folder of a run: everything that is needed to understand it, repeat it, and resume it. No secrets.

What it holds, `contents.py` says. It is named `runs/quickstart-20261122-160501` by its run and its time (UTC).
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from counterpoint.configs.dump import to_yaml
from counterpoint.configs.errors import RunError
from counterpoint.configs.redact import redact
from counterpoint.configs.schema import RunSettings
from counterpoint.train.run.lock import FolderLock, lock_folder

CONFIG, VERSIONS, STATE, METRICS, LOG = "config.yaml", "versions.json", "run.json", "metrics.jsonl", "log.txt"
NEWEST, AUTO = "newest", "auto"
ASIDE = "overwritten"
_OWN = (CONFIG, VERSIONS, STATE, LOG)
LIBRARIES = ("counterpoint", "py.warnings", "transformers", "trl", "peft", "accelerate", "datasets")


def new_run_folder(settings: RunSettings) -> Path:
    """Make a folder that nobody else has: `<output>/<name>-<UTC yyyymmdd-hhmmss>`, numbered if taken."""
    stem = f"{settings.name or 'run'}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    parent = Path(settings.output)
    for count in range(1, 1000):
        folder = parent / (stem if count == 1 else f"{stem}-{count}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"{parent}: no run folder can be made there ({error.strerror}): set `output`") from None
    raise RunError(f"{parent}: a thousand runs began in this second: set `name`")


def newest_run_folder(settings: RunSettings, begun: bool = True) -> Path:
    """The newest run folder of this name; with `begun`, of a run that can be resumed or did not fail.

    RunError where there is none.
    """
    pattern = re.compile(re.escape(settings.name or "run") + r"-(\d{8}-\d{6})(?:-(\d+))?")
    parent = Path(settings.output)
    found = []
    for folder in parent.iterdir() if parent.is_dir() else ():
        match = pattern.fullmatch(folder.name)
        if match and (folder / CONFIG).is_file() and (_has_begun(folder) or not begun):
            found.append((match[1], int(match[2] or 1), folder))
    if not found:
        raise RunError(f"{parent}: no run of the name {settings.name or 'run'} to resume: leave out --resume")
    return max(found)[2]


def named_run_folder(path: str) -> Path:
    """A run folder that the user named; a checkpoint in one means its run. RunError where there is none."""
    folder = Path(path)
    if folder.parent.name == "checkpoints":
        folder = folder.parent.parent
    if not (folder / CONFIG).is_file():
        raise RunError(f"{path}: not a run folder (it has no {CONFIG}): give one made by `counterpoint train`")
    return folder


def what_to_resume(settings: RunSettings, resume: str | None) -> str | None:
    """`auto` is the newest run of this name that has begun, and where there is none, None: a new run."""
    if resume != AUTO:
        return resume
    try:
        newest_run_folder(settings)
    except RunError:
        return None
    return NEWEST


def choose_run_folder(settings: RunSettings, resume: str | None, overwrite: bool) -> tuple[Path, bool]:
    """The folder of a run, and whether it was made for it. resume, overwrite: as of `recipes.sft.run`."""
    if resume is not None:
        return newest_run_folder(settings) if resume == NEWEST else named_run_folder(resume), False
    if overwrite:
        try:
            return newest_run_folder(settings, begun=False), False
        except RunError:
            pass
    return new_run_folder(settings), True


class RunFolder:
    """A locked run folder; the lock goes with `close`. Only the main process has one. new: made for this run."""

    def __init__(self, path: Path, new: bool = False) -> None:
        self.path, self.new = path, new
        self.lock: FolderLock = lock_folder(path)
        self._handler = _LogHandler(self)
        self._loggers: list[tuple[logging.Logger, int, bool, list[logging.Handler]]] = []
        if self.lock.stale is not None:
            self.log(f"took over the lock of {self.lock.stale}, which is dead")

    def forget_aside(self) -> None:
        """Remove the old run that was moved away: the new run trains."""
        if (self.path / ASIDE).is_dir():
            shutil.rmtree(self.path / ASIDE)

    def empty(self, keep: Collection[str] = ()) -> None:
        """Remove what an earlier run left in the folder, but for these names, for one that starts over."""
        for entry in list(self.path.iterdir()):
            if entry.name in keep:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != self.lock.path:
                entry.unlink()

    def set_aside(self) -> None:
        """Move what an earlier run left into a folder of its own, until the new one trains (`forget_aside`)."""
        aside = self.path / ASIDE
        if aside.is_dir():  # of an attempt that was killed: its own files go, the run is what was moved away
            self.empty(keep={ASIDE})
        elif entries := [entry for entry in self.path.iterdir() if entry != self.lock.path]:
            aside.mkdir()
            for entry in entries:
                entry.rename(aside / entry.name)

    def withdraw(self, mistake: bool) -> None:
        """Undo a run that did not get to train. The old run that was moved away comes back; where it was the user's
        mistake, a new folder is removed, unless it holds more than the description of the run. Quarantined rows
        are kept."""
        aside = self.path / ASIDE
        if aside.is_dir():
            self.empty(keep={ASIDE, *(e.name for e in self.path.iterdir() if e.is_file() and e.name not in _OWN)})
            for entry in list(aside.iterdir()):
                if not (self.path / entry.name).exists():
                    entry.rename(self.path / entry.name)
            shutil.rmtree(aside)
        elif self.new and mistake and all(entry.name in {*_OWN, self.lock.path.name} for entry in self.path.iterdir()):
            shutil.rmtree(self.path)

    def describe(self, settings: RunSettings, versions: Mapping[str, Any]) -> None:
        """Write config.yaml and versions.json."""
        write_whole(self.path / CONFIG, to_yaml(settings))
        self.write_json(VERSIONS, versions)

    def state(self, **values: Any) -> None:
        """Add to run.json."""
        self.lock.check()
        self.write_json(STATE, {**state_of(self.path), **values})

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        write_whole(self.path / name, json.dumps(redact(dict(value)), indent=1) + "\n")

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop lines that a run resumed at `step` will write again, and a line that a kill cut short.

        It trains the later steps, and measures `step` anew: only that step's training metrics stay.
        """
        path = self.path / METRICS
        if not path.is_file():
            return
        kept = [values for values in json_lines(path) if _stays(values, step)]
        write_whole(path, "".join(json.dumps(values) + "\n" for values in kept))

    def log(self, text: str) -> None:
        """Append to log.txt, with the time."""
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {redact(text)}\n")

    def take_library_logs(self) -> None:
        """Warnings of the libraries go to log.txt instead of the terminal, until `close`. No progress bars."""
        disable_progress_bar()
        logging.captureWarnings(True)
        for name in LIBRARIES:
            logger = logging.getLogger(name)
            self._loggers.append((logger, logger.level, logger.propagate, logger.handlers))
            logger.setLevel(logging.WARNING)
            logger.propagate, logger.handlers = False, [self._handler]

    def close(self) -> None:
        for logger, level, propagate, handlers in self._loggers:
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers
        if self._loggers:
            logging.captureWarnings(False)
        self._loggers = []
        self.lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _LogHandler(logging.Handler):
    def __init__(self, folder: RunFolder) -> None:
        super().__init__(logging.WARNING)
        self.folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.folder.log(f"{record.name}: {' '.join(record.getMessage().split())}")
        except OSError:
            self.handleError(record)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a kill leaves the old or the new text, never a part."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no file. A line that a kill cut short is left out."""
    found: list[dict[str, Any]] = []
    # Bytes: a line ends with a newline only, and a text of a model may hold every other kind of line break.
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        with suppress(ValueError):
            if isinstance(value := json.loads(line), dict):
                found.append(value)
    return found


def _has_begun(folder: Path) -> bool:
    """Whether there is anything to resume; a run that failed before it had any is none."""
    try:
        state = state_of(folder)
    except OSError:
        state = {}
    failed = "data" not in state or state.get("state") == "failed"
    return not failed or any((folder / name).exists() for name in (METRICS, "checkpoints"))


def state_of(folder: Path) -> dict[str, Any]:
    """What run.json holds; nothing where it is damaged."""
    path = folder / STATE
    try:
        value = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _stays(values: Mapping[str, Any], step: int) -> bool:
    return values.get("step", step + 1) < step or (values.get("step") == step and "loss" in values)
