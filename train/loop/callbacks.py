"""What happens around the steps: metrics to folder, tracker and terminal; proof that adapters train; held-out loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from counterpoint.data.harmony.spans import CHANNEL_NAMES
from counterpoint.data.layout.tree import TreeRow
from counterpoint.train.adapters.attach import check_attached_after_step, check_attached_before_step, lora_parts
from counterpoint.train.loop.meter import Meter
from counterpoint.train.loop.row_dataset import ROW, RowCollator
from counterpoint.train.run.folder import RunFolder
from counterpoint.train.run.progress import Progress, progress_line
from counterpoint.train.run.tracking import Tracker

if TYPE_CHECKING:
    from counterpoint.train.loop.sft_trainer import CounterpointTrainer

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


class HeldOutLoss(TrainerCallback):
    """The loss of rows that are not trained, overall and by channel, as `valid_loss...` in the metrics.

    A `StepCallback` (base_trainer.py), for every process.
    """

    def __init__(
        self, trainer: CounterpointTrainer, rows: Sequence[TreeRow], every: int | None, at_start: bool
    ) -> None:
        self.trainer, self.rows, self.every, self.at_start = trainer, rows, every, at_start

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.at_start and state.global_step == 0:
            self._measure()

    def after_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        last = state.global_step >= state.max_steps
        if last or (self.every and state.global_step % self.every == 0):
            self._measure()

    def _measure(self) -> None:
        self.trainer.log(held_out_loss(self.trainer, self.rows))


@torch.no_grad()
def held_out_loss(trainer: CounterpointTrainer, rows: Sequence[TreeRow]) -> dict[str, float]:
    """Weighted mean of the loss over `rows`, overall and by channel. Every process takes a part of the rows."""
    accelerator, model, meter = trainer.accelerator, cast(Any, trainer.model_wrapped), Meter(trainer.args.device)
    was_training = model.training
    model.eval()
    for numbers, counts in _share(len(rows), trainer.args.per_device_eval_batch_size, accelerator):
        batch = RowCollator(rows, trainer.collate)([{ROW: number} for number in numbers])
        inputs = trainer._prepare_inputs(batch)  # transformers' way to the device
        with trainer.compute_loss_context_manager():
            _, nll_T = trainer.nll(model, inputs, 1.0)
        meter.add_targets(nll_T, inputs["target_weights"] * counts, inputs["target_channels"])
    model.train(was_training)
    # Collective: `HeldOutLoss` is a callback of every process, and due at the same steps.
    loss_C, weight_C = cast(torch.Tensor, accelerator.reduce(meter.sums_2C, "sum")).tolist()
    channels = {
        f"valid_loss_{name}": loss / weight
        for name, loss, weight in zip(CHANNEL_NAMES, loss_C, weight_C, strict=True)
        if weight > 0
    }
    return {"valid_loss": sum(loss_C) / sum(weight_C), **channels} if sum(weight_C) > 0 else {}


def _share(n_rows: int, batch_rows: int, accelerator: Accelerator) -> Iterator[tuple[list[int], float]]:
    """This process' batches of row numbers, each with the factor 1. All processes get equally many, since a sharded
    model waits for all of them in every forward pass: missing batches are filled up with ones of factor 0."""
    mine = list(range(accelerator.process_index, n_rows, accelerator.num_processes))
    batches = math.ceil(math.ceil(n_rows / accelerator.num_processes) / batch_rows)
    for i in range(batches):
        numbers = mine[i * batch_rows : (i + 1) * batch_rows]
        yield (numbers, 1.0) if numbers else ([0], 0.0)
