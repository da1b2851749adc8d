"""A run from its folder to its end: who holds the folder, where it resumes from, and what is printed on the way."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from counterpoint.configs.dump import plain
from counterpoint.configs.errors import CounterpointError, RunError
from counterpoint.configs.redact import redact
from counterpoint.configs.schema import TrainingRun
from counterpoint.train.checkpoints.resume import (
    CHECKPOINTS,
    Checkpoint,
    Identity,
    check_same_run,
    newest_complete,
    read_checkpoint,
)
from counterpoint.train.checkpoints.save import checkpoints_in, clean_partial, remove, step_of
from counterpoint.train.checkpoints.weights import ADAPTER_FILE
from counterpoint.train.model.load import device_of
from counterpoint.train.model.marker import file_hash
from counterpoint.train.model.memory_errors import is_out_of_memory
from counterpoint.train.model.pin import base_pin
from counterpoint.train.run.folder import RunFolder, choose_run_folder, what_to_resume
from counterpoint.train.run.progress import Progress
from counterpoint.train.run.signals import StopSignal
from counterpoint.train.run.tracking import NoTracker, Tracker, start_tracker
from counterpoint.train.run.versions import versions
from counterpoint.train.run.world import rows_per_step, world_size

T = TypeVar("T")


@dataclass
class Session:
    """What a recipe holds while it runs. Processes other than the main one have no `folder` and say nothing.

    checkpoint: where the run resumes from, None for a fresh one. stop: the signal that ends it. allow_changes: it may
    resume although settings changed. trains: every check passed.
    """

    path: Path
    checkpoint: Checkpoint | None
    stop: StopSignal
    allow_changes: bool = False
    folder: RunFolder | None = None
    tracker: Tracker = field(default_factory=NoTracker)
    progress: Progress = field(default_factory=Progress)
    trains: bool = False
    output_lost: bool = False

    def say(self, text: str) -> None:
        """Print, and write to log.txt."""
        if self.folder is not None:
            self.progress.say(redact(text))
            self.folder.log(text)
            if self.progress.lost is not None and not self.output_lost:
                self.output_lost = True
                self.folder.log(f"standard output is gone ({self.progress.lost}): the run goes on, and is told here")

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def pinned(self, settings: TrainingRun) -> dict[str, Any]:
        """What is pinned of the base, and of the adapter that the run starts from (`adapter`: its sha256); a run that
        resumes takes the commit that it began with."""
        model = settings.model
        pin = (self.checkpoint.details.get("base") if self.checkpoint else None) or {}
        if model.revision is None and pin.get("name") == model.name:
            model = model.model_copy(update={"revision": pin["revision"]})
        adapter = {} if model.adapter is None else {"adapter": file_hash(Path(model.adapter) / ADAPTER_FILE)}
        if Path(model.name).expanduser().is_dir():  # 13 to 40 GB are read by one process
            return {**agreed(lambda: base_pin(model), settings), **adapter}
        return {**base_pin(model), **adapter}  # each process downloads what it is going to read

    def began(self, settings: TrainingRun, identity: Identity, steps: int) -> None:
        """Compare with the checkpoint (RunError where the run is another one), and note what the run is."""
        if self.checkpoint is not None:
            for change in check_same_run(self.checkpoint, identity, self.allow_changes):
                self.warn(f"resumes with another setting: {change}")
            if self.checkpoint.step > steps:
                raise RunError(
                    f"{self.checkpoint.folder}: it is past the last of {steps} steps (train.steps, train.epochs): "
                    "raise them, or go back to an older checkpoint"
                )
        if self.folder is not None:
            if self.checkpoint is not None:
                _describe(self.folder, settings)  # only now: a refused resume leaves the run's own
            step = self.checkpoint.step if self.checkpoint else 0
            self.folder.forget_metrics_after(step)
            seeds = {"seed": identity.settings["seed"], "data": identity.settings["seed"]}
            self.folder.state(seeds=seeds, data=identity.data, steps=steps, base=identity.base)

    def begins_tracking(self, settings: TrainingRun) -> None:
        """Once the model has loaded: a run that a mistake keeps from training is not listed anywhere."""
        if self.folder is not None:
            step = self.checkpoint.step if self.checkpoint else 0
            self.tracker = start_tracker(settings.tracking, self.path, plain(settings), self.warn, step)

    def begins_training(self) -> None:
        self.trains = True
        if self.folder is not None:
            self.folder.forget_aside()

    def ended(self, state: str, **values: Any) -> None:
        if self.folder is not None:
            self.folder.state(state=state, ended=_now(), **values)


@contextmanager
def open_session(settings: TrainingRun, resume: str | None = None, overwrite: bool = False) -> Iterator[Session]:
    """Signals caught, the run's folder locked, described and printed; on exit the run's end is recorded.

    resume: None for a new run, `newest` for the newest of this name, `auto` for that or else a new run, or a run folder
    or checkpoint. overwrite: start over in the newest folder of this name; with `resume`, resume although settings
    changed. RunError in plain words for a full disk and for too little memory. Of a run that a mistake keeps from
    training nothing is left, and what it would have overwritten is kept.
    """
    if settings.train.threads is not None:
        torch.set_num_threads(settings.train.threads)
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        stack.enter_context(plain_errors(settings))
        own: list[RunFolder] = []
        notes: list[str] = []

        def begin() -> tuple[Path, Checkpoint | None]:
            nonlocal resume
            resume = what_to_resume(settings, resume)
            own.append(stack.enter_context(RunFolder(*choose_run_folder(settings, resume, overwrite))))
            if own[0].lock.moved:
                notes.append(f"took over the folder from {own[0].lock.stale}, which gives no sign of life")
            return own[0].path, _prepare(settings, own[0], resume, overwrite, notes)

        session = Session(*agreed(begin, settings), stop=stop, allow_changes=overwrite)
        stack.callback(lambda: session.tracker.close())
        if own:
            session.folder = own[0]
            session.folder.take_library_logs()
        try:
            session.say(f"run folder  {session.path}")
            for note in notes:
                session.warn(note)
            yield session
        except BaseException as error:
            _note_failure(session, error)
            if session.folder is not None and resume is None and not session.trains:
                session.folder.withdraw(mistake=isinstance(error, CounterpointError))
            raise


def agreed(decide: Callable[[], T], settings: TrainingRun) -> T:
    """What the main process decides, broadcast to all; its error is raised in all."""
    if world_size() == 1:
        return decide()
    limit = timedelta(seconds=settings.launch.timeout)
    state = PartialState(cpu=device_of(settings.train.device).type == "cpu", timeout=limit)
    shared: list[Any] = [None, None]
    if state.is_main_process:
        try:
            shared[0] = decide()
        except CounterpointError as error:
            shared[1] = str(error)
    # Collective: a failed decision is sent too, so that no process waits here for one that has gone.
    broadcast_object_list(shared)
    if shared[1] is not None:
        raise RunError(shared[1])
    return shared[0]


@contextmanager
def plain_errors(settings: TrainingRun) -> Iterator[None]:
    """A full disk, too little memory and a lost process, in one line that says what to do."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise _out_of_memory(settings) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or "run folder"
            raise RunError(f"the disk is full ({where}): free some space, then --resume") from error
        if isinstance(error, RuntimeError) and world_size() > 1 and _has_lost_a_process(error):
            raise RunError(
                "another process of this run has ended, cannot be reached, or let this one wait longer than "
                f"launch.timeout ({settings.launch.timeout:g} s): see its own last lines; "
                "continue from the newest checkpoint with --resume"
            ) from error
        raise


def _has_lost_a_process(error: RuntimeError) -> bool:
    """gloo has no type of its own for it, NCCL has."""
    lost = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
    return isinstance(error, lost) or "gloo/transport" in str(error) or "onnection closed by peer" in str(error)


def _out_of_memory(settings: TrainingRun) -> RunError:
    train, data = settings.train, settings.data
    packed = getattr(data, "pack_tokens", None)
    tokens = f"data.pack_tokens={packed}" if packed else f"data.max_tokens={data.max_tokens}"
    again = {True: "", "experts": "true"}.get(train.activation_checkpointing, "experts or true")
    if again and (settings.model.experts == "reference" or not settings.lora.enabled):
        again = "true"
    advice = [
        f"lower train.batch_rows={train.batch_rows} (raising train.accumulation={train.accumulation} keeps the step "
        "the same)"
    ]
    if again:
        now = str(train.activation_checkpointing).lower()
        advice.append(f"set train.activation_checkpointing={again} (now {now})")
    elif not train.activation_offload and torch.cuda.is_available():
        advice.append("set train.activation_offload=true")
    return RunError(f"out of memory: {' or '.join(advice)}, then --resume; or start over with a lower {tokens}")


def _prepare(
    settings: TrainingRun, folder: RunFolder, resume: str | None, overwrite: bool, notes: list[str]
) -> Checkpoint | None:
    """Clean the folder, find the checkpoint to resume from, and write down what the run is.

    notes: gets what the user should know of the checkpoints.
    """
    checkpoint = None
    if resume is None:
        folder.set_aside()
    else:
        checkpoint = _find_checkpoint(folder, resume, overwrite, notes)
    if checkpoint is not None:
        # The data is compared later; settings now, before anything slow, and before they are written down.
        now = Identity(plain(settings), checkpoint.details["data"], rows_per_step(settings))
        check_same_run(checkpoint, now, allow_changes=overwrite)
    else:
        _describe(folder, settings)
    folder.state(state="running", began=_now(), pid=os.getpid(), resumed=checkpoint.step if checkpoint else None)
    return checkpoint


def _describe(folder: RunFolder, settings: TrainingRun) -> None:
    folder.describe(settings, versions(device_of(settings.train.device).type))


def _find_checkpoint(folder: RunFolder, resume: str, overwrite: bool, notes: list[str]) -> Checkpoint | None:
    checkpoints = folder.path / CHECKPOINTS
    if Path(resume).parent.name != CHECKPOINTS:
        checkpoint, passed_over = newest_complete(folder.path)
        clean_partial(checkpoints)  # what is left of those that were skipped was complete once, and is damaged
        if checkpoint is None and checkpoints_in(checkpoints) and not overwrite:
            raise RunError(
                f"{checkpoints}: no checkpoint is usable ({'; '.join(passed_over)}): restore one, or pass --overwrite "
                "to start over in this folder"
            )
        notes += [f"skipped {line}" for line in passed_over]
        return checkpoint
    checkpoint = read_checkpoint(Path(resume))
    later = [other for other in checkpoints_in(checkpoints) if (step_of(other) or 0) > checkpoint.step]
    if later and not overwrite:
        raise RunError(
            f"{resume}: {later[-1].name} is newer and would be lost: take its run folder, or pass --overwrite"
        )
    for other in later:
        remove(other)
    clean_partial(checkpoints)
    return checkpoint


def _note_failure(session: Session, error: BaseException) -> None:
    if session.folder is not None:
        session.folder.lock.check()  # a folder that is another's by now is neither written nor withdrawn
    reason = redact(f"{type(error).__name__}: {error}")
    try:
        if session.folder is not None:
            session.folder.log("".join(traceback.format_exception(error)))
        session.ended("failed", reason=reason)
    except OSError:
        # The disk is full: the error itself is on its way to the user.
        pass


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
