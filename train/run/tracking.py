"""Trackers of a run: Weights & Biases, TensorBoard, MLflow. Each gets the same numbers under the same names, and
tables, and no failure of one affects the run or another one.

Each is driven by one background thread, fed by a queue. Where it is missing, refuses to start, raises, or hangs, the
run reports it once and continues. All files are in the run folder.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from counterpoint.configs.redact import redact
from counterpoint.configs.train_section import TrackingSettings
from counterpoint.train.run.tracker_backends import mlflow, tensorboard

Cell = str | int | float | bool | None
WAITING_CALLS = 10_000
"""More than a run logs while wandb starts; beyond them it does not keep up, and is switched off."""
CLOSE_SECONDS = {"offline": 20.0, "online": 120.0, "tensorboard": 20.0, "mlflow": 120.0}
"""What wandb (`offline`, `online`) and the others get to finish: a lost network must not delay the end of a run for
longer."""
EXTRAS = ("tensorboard", "mlflow")


class Tracker(Protocol):
    """Where a run's numbers go besides its own folder. No method raises or waits."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at an optimizer step."""
        ...

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table at an optimizer step, for example of samples."""
        ...

    def close(self) -> None:
        """Finish what was given, within bounds."""
        ...


class Backend(Protocol):
    """What drives one tracker, in a thread of its own; it may raise and wait."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...


class NoTracker:
    """No tracker at all, and every process but the main one."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None: ...

    def close(self) -> None: ...


def start_tracker(
    settings: TrackingSettings,
    run_folder: Path,
    config: Mapping[str, Any],
    warn: Callable[[str], None],
    first_step: int = 0,
) -> Tracker:
    """The trackers of a run as one. config: its settings, as plain values; secrets in it are hidden once more.
    first_step: where it resumes from."""
    told = redact(dict(config))
    found: list[Tracker] = []
    if settings.wandb != "off":
        ends = CLOSE_SECONDS[settings.wandb]
        off = "tracking.wandb: off silences this"
        found.append(GuardedTracker("wandb", lambda: _wandb(settings, run_folder, told), ends, off, warn))
    others: dict[str, Callable[[], AbstractContextManager[Backend]]] = {
        "tensorboard": lambda: tensorboard(run_folder, told, first_step),
        "mlflow": lambda: mlflow(settings, run_folder, told),
    }
    for name, start in others.items():
        if getattr(settings, name):
            off = f"tracking.{name}: false silences this"
            found.append(GuardedTracker(name, start, CLOSE_SECONDS[name], off, warn))
    return found[0] if len(found) == 1 else Trackers(found) if found else NoTracker()


@dataclass(frozen=True)
class Trackers:
    """Several, each of which may fail alone."""

    trackers: Sequence[Tracker]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.scalars(step, values)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        for tracker in self.trackers:
            tracker.table(step, name, columns, rows)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


class GuardedTracker:
    """A backend in a thread of its own; after its first failure every call is dropped."""

    def __init__(
        self,
        name: str,
        start: Callable[[], AbstractContextManager[Backend]],
        ends: float,
        off: str,
        warn: Callable[[str], None],
    ) -> None:
        """start: entered in the thread. ends: seconds that it gets to finish. off: how a user silences it."""
        self._name, self._start, self._ends, self._off, self._warn = name, start, ends, off, warn
        self._calls: queue.Queue[Callable[[Backend], None] | None] = queue.Queue(WAITING_CALLS)
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        kept = dict(values)
        self._put(lambda backend: backend.scalars(step, kept))

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        heads: list[str] = list(columns)
        data: list[list[Any]] = [[redact(cell) for cell in row] for row in rows]
        self._put(lambda backend: backend.table(step, name, heads, data))

    def close(self) -> None:
        self._put(None)
        self._thread.join(self._ends)
        if self._thread.is_alive() and not self._failed:
            self._fail(f"it did not finish within {self._ends:.0f} seconds")

    def _put(self, call: Callable[[Backend], None] | None) -> None:
        if self._failed:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._fail("it does not keep up with the run")

    def _work(self) -> None:
        try:
            with self._start() as backend:
                while (call := self._calls.get()) is not None:
                    call(backend)
        # SystemExit as well: wandb has ended the process on its own in the past.
        except (Exception, SystemExit) as error:
            reason = str(error).splitlines()[0] if str(error) else "no reason given"
            if isinstance(error, ImportError) and self._name in EXTRAS:
                reason = f"{reason}: pip install 'counterpoint[{self._name}]'"
            self._fail(f"{type(error).__name__}: {reason}")

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            _silence_exit_hooks()
            self._warn(redact(f"{self._name}: {reason}: the run continues without it ({self._off})"))


def _silence_exit_hooks() -> None:
    """wandb's hook at exit would print a traceback where its service is gone."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not str(getattr(unraisable.object, "__module__", "")).startswith("wandb"):
            before(unraisable)

    sys.unraisablehook = hook


@contextmanager
def _files_in(folder: Path) -> Iterator[None]:
    """Staged tables and caches would be in the home folder otherwise, and be missing when a run is synced later."""
    ours = {"WANDB_DATA_DIR": folder / "data", "WANDB_CACHE_DIR": folder / "cache"}
    changed = [name for name in ours if name not in os.environ]
    os.environ.update({name: str(ours[name].resolve()) for name in changed})
    try:
        yield
    finally:
        for name in changed:
            os.environ.pop(name, None)


class WandbBackend:
    def __init__(self, run: Any) -> None:
        self.run = run

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(values, step=step)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        self.run.log({name: wandb.Table(columns=list[Any](columns), data=list[Any](rows))}, step=step)


@contextmanager
def _wandb(settings: TrackingSettings, run_folder: Path, config: Mapping[str, Any]) -> Iterator[WandbBackend]:
    with _files_in(run_folder / "wandb"):
        run = _start_wandb(settings, run_folder, config)
        yield WandbBackend(run)
        run.finish()


def _start_wandb(settings: TrackingSettings, run_folder: Path, config: Mapping[str, Any]) -> Any:
    import wandb

    quiet = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
    )
    return wandb.init(
        mode=settings.wandb,  # pyright: ignore[reportArgumentType]
        dir=str(run_folder),
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        tags=settings.tags or None,
        id=run_folder.name,
        name=run_folder.name,
        resume="allow" if settings.wandb == "online" else None,
        config=dict(config),
        settings=quiet,
    )
