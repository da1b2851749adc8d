"""Weights & Biases of a run: it gets numbers and tables, and no failure of it affects the run.

wandb is driven by one background thread, fed by a queue. Where it is missing, refuses to start, raises, or hangs, the
run reports it once and continues. All its files are in the run folder.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from counterpoint.configs.redact import redact
from counterpoint.configs.train_section import TrackingSettings

Cell = str | int | float | bool | None
WAITING_CALLS = 10_000
"""More than a run logs while wandb starts; beyond them it does not keep up, and is switched off."""
CLOSE_SECONDS = {"offline": 20.0, "online": 120.0}
"""What wandb gets to finish: a lost network must not delay the end of a run for longer."""


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


class NoTracker:
    """`tracking.wandb: off`, and every process but the main one."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None: ...

    def close(self) -> None: ...


def start_tracker(
    settings: TrackingSettings, run_folder: Path, config: Mapping[str, Any], warn: Callable[[str], None]
) -> Tracker:
    """The tracker of a run. config: its settings, as plain values; secrets in it are hidden once more."""
    if settings.wandb == "off":
        return NoTracker()
    return WandbTracker(settings, run_folder, config, warn)


class WandbTracker:
    """wandb in a thread of its own; after its first failure every call is dropped."""

    def __init__(
        self, settings: TrackingSettings, run_folder: Path, config: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        self._settings, self._folder, self._config, self._warn = settings, run_folder, redact(dict(config)), warn
        self._calls: queue.Queue[Callable[[Any], None] | None] = queue.Queue(WAITING_CALLS)
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        kept = dict(values)
        self._put(lambda run: run.log(kept, step=step))

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        heads: list[Any] = list(columns)
        data: list[Any] = [[redact(cell) for cell in row] for row in rows]

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=heads, data=data)}, step=step)

        self._put(log)

    def close(self) -> None:
        seconds = CLOSE_SECONDS[self._settings.wandb]
        self._put(None)
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._failed:
            self._fail(f"it did not finish within {seconds:.0f} seconds")

    def _put(self, call: Callable[[Any], None] | None) -> None:
        if self._failed:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._fail("it does not keep up with the run")

    def _work(self) -> None:
        try:
            with _files_in(self._folder / "wandb"):
                run = _start_wandb(self._settings, self._folder, self._config)
                while (call := self._calls.get()) is not None:
                    call(run)
                run.finish()
        # SystemExit as well: wandb has ended the process on its own in the past.
        except (Exception, SystemExit) as error:
            self._fail(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}")

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            _silence_exit_hooks()
            self._warn(redact(f"wandb: {reason}: the run continues without it (tracking.wandb: off silences this)"))


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
