"""What happens around the steps: metrics to folder, tracker and terminal; proof that adapters train."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from counterpoint.train.adapters.attach import check_attached_after_step, check_attached_before_step, lora_parts
from counterpoint.train.run.folder import RunFolder
from counterpoint.train.run.progress import Progress, progress_line
from counterpoint.train.run.tracking import Tracker

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")


class RunLog(TrainerCallback):
    """Every log line to metrics.jsonl, the tracker and the progress line. For the main process."""

    def __init__(self, folder: RunFolder, tracker: Tracker, progress: Progress) -> None:
        self.folder, self.tracker, self.progress = folder, tracker, progress
        self.began, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.began, self.first_step = time.monotonic(), state.global_step

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # transformers' own summary at the end of training holds nothing that the folder does not.
        values = {key: value for key, value in (logs or {}).items() if key not in TIMES}
        if set(values) <= {"epoch"}:
            return
        self.folder.metrics({"step": state.global_step, **values})
        self.tracker.scalars(state.global_step, values)
        if "loss" in values:
            left = self._seconds_left(state)
            self.progress.show(progress_line(state.global_step, state.max_steps, values, left))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.folder.lock.check()  # before anything is saved

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.folder.log(f"checkpoint of step {state.global_step}")

    def _seconds_left(self, state: TrainerState) -> float | None:
        done = state.global_step - self.first_step
        return (time.monotonic() - self.began) / done * (state.max_steps - state.global_step) if done else None


class AttachmentProof(TrainerCallback):
    """Stops a run whose adapters do not train: frozen, unknown to the optimizer, or zero after the first real step.

    taught: whether the step has anything to learn from; rollouts of equal rewards give no gradient.
    """

    def __init__(self, taught: Callable[[], bool] = lambda: True) -> None:
        self.taught = taught
        self.proven = False

    def on_train_begin(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self.proven = self.proven or state.global_step > 0 or not any(True for _ in lora_parts(model))
        if not self.proven:
            check_attached_before_step(model, optimizer)

    def on_optimizer_step(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        # The first step of a warm-up has rate 0 and moves nothing.
        if not self.proven and optimizer.param_groups[0]["lr"] > 0 and self.taught():
            check_attached_after_step(model)
            self.proven = True
