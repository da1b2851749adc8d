"""TRL's SFTTrainer on our rows: loss at trained positions only, by channel, and no step on a loss that is not finite.

Legend: B rows of a micro-batch, S tokens of a row, T trained positions, H hidden, V rows of the vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from counterpoint.configs.errors import RunError
from counterpoint.data.layout.tree import TreeRow
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.base_trainer import BaseTrainer
from counterpoint.train.loop.head import target_hidden
from counterpoint.train.loop.loss import weighted_nll
from counterpoint.train.loop.loss_guard import MicroBatch, SpikeWatch, named, not_finite_error
from counterpoint.train.loop.meter import Meter, StepClock
from counterpoint.train.loop.router_loss import RouterLoss
from counterpoint.train.loop.row_dataset import RowCollator, row_numbers
from counterpoint.train.loop.tokenizer_stub import TokenizerStub
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.run.signals import StopSignal


class CounterpointTrainer(BaseTrainer, SFTTrainer):
    """Trains `model` (a gpt-oss model, or PEFT's wrap of one) on tree rows.

    collate: rows to a batch (data/layout/collate.py). warn: where warnings go. The rest: `BaseTrainer.set_up_loop`.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: SFTConfig,
        rows: Sequence[TreeRow],
        collate: Callable[[list[TreeRow]], dict[str, Any]],
        loop: LoopSettings,
        identity: Identity,
        *,
        callbacks: list[TrainerCallback] | None = None,
        extras: Callable[[Path], None] | None = None,
        warn: Callable[[str], None] = print,
        stop: StopSignal | None = None,
    ) -> None:
        self.collate = collate
        self.warn = warn
        self.spikes = SpikeWatch(loop.spike_factor)
        self.clock = StepClock()
        self._step_batches: list[MicroBatch] = []
        self._forget_step()
        super().__init__(
            model=model,  # pyright: ignore[reportArgumentType]
            args=args,
            data_collator=RowCollator(rows, collate),  # pyright: ignore[reportArgumentType]
            train_dataset=row_numbers(rows),
            processing_class=TokenizerStub(),
            callbacks=callbacks,
        )
        # From here on transformers would save the stand-in, and write its tokens into the model's config.
        self.processing_class = None
        self.set_up_loop(loop, identity, extras, stop)
        self.meter = Meter(self.args.device)
        self.router_loss = RouterLoss(self.base) if loop.router_aux_loss_coef else None
        self.autocast = any(p.dtype == torch.bfloat16 for p in self.base.parameters())

    # ---- loss

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """bfloat16 autocast over a bfloat16 base: adapters stay float32 and multiply in bfloat16."""
        stack = contextlib.ExitStack()
        stack.enter_context(torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.autocast))
        return stack

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum of weight x nll over this micro-batch / sum of weights of the whole step, times the processes.

        The factor undoes DDP's mean over processes.
        """
        assert not return_outputs, "there are no logits to return"
        normaliser = torch.as_tensor(1.0 if num_items_in_batch is None else num_items_in_batch)
        # A step without any weight has loss zero, not 0 / 0.
        normaliser = torch.where(normaliser > 0, normaliser, torch.ones_like(normaliser))
        with self.router_loss.recording() if self.router_loss else contextlib.nullcontext():
            loss, nll_T = self.nll(model, inputs, normaliser)
        self.meter.add_targets(nll_T, inputs["target_weights"], inputs["target_channels"])
        self._remember(inputs, nll_T, loss)
        if self.router_loss is not None:
            share = self.loop.router_aux_loss_coef / self.current_gradient_accumulation_steps
            loss = loss + share / self.accelerator.num_processes * self.router_loss.read()
        return loss * self.accelerator.num_processes

    def nll(
        self, model: nn.Module, inputs: dict[str, Any], normaliser: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(weighted loss / normaliser, detached nll (T,)) of a collated batch; no logits of context are made."""
        hidden_TH, weight_VH = target_hidden(model, self.base, inputs)
        return weighted_nll(
            hidden_TH, weight_VH, inputs["target_ids"], inputs["target_weights"], normaliser, self.loop.lean_loss
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Sum of weights over the whole step: all micro-batches of all processes. transformers asks for it before each
        step, and gives it to `compute_loss` as `num_items_in_batch`."""
        total = torch.tensor(0.0, dtype=torch.float64)
        for batch in batch_samples:
            total += batch["target_weights"].sum(dtype=torch.float64).cpu()
        # Collective: every process takes every step.
        total = self.accelerator.gather(total.to(device).reshape(1)).sum()  # pyright: ignore[reportAttributeAccessIssue]
        return total.float() if device.type == "cuda" else total

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """transformers' batches of one optimizer step; its time begins here."""
        self.clock.begin()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    # ---- the step, before and after the optimizer

    def _remember(self, inputs: dict[str, Any], nll_T: torch.Tensor, loss: torch.Tensor) -> None:
        target_row_T = inputs["target_index"] // inputs["input_ids"].shape[1]
        self._step_batches.append(MicroBatch(inputs["sources"], target_row_T, nll_T))
        self._step_loss = self._step_loss.to(loss.device) + loss.detach().double()
        self._step_tokens[0] += int(inputs["target_ids"].shape[0])
        self._step_tokens[1] += int(inputs["n_tokens"])

    def check_step(self, model: nn.Module, norm: float) -> None:
        """Called by every process before the weights change: losses and tokens of all, and the guards."""
        stop = 1.0 if self.stop.received is not None else 0.0
        local = torch.tensor([*map(float, self._step_tokens), stop], dtype=torch.float64, device=self.args.device)
        local = torch.cat([self._step_loss.to(local).reshape(1), local])
        # Collective: every process takes every step.
        loss, trained, total, stops = self.accelerator.reduce(local, "sum").tolist()  # pyright: ignore
        self.stop_agreed = self.stop_agreed or stops > 0
        self._check_loss(model, loss, norm)
        self.step_loss = loss
        self.meter.add_step(loss, int(trained), int(total), self.clock.seconds())
        self._forget_step()

    def _check_loss(self, model: nn.Module, loss: float, norm: float) -> None:
        """loss and norm are of all processes, and so is the history of `spikes`: all take the same branch, which they
        must, since `_from_all` waits for all."""
        step = self.state.global_step + 1
        if not (torch.isfinite(torch.tensor([loss, norm])).all()):
            guilty = self._from_all([s for batch in self._step_batches for s in batch.rows_not_finite()])
            everyone = self._from_all([s for batch in self._step_batches for s in batch.rows()])
            raise not_finite_error(step, loss, guilty, everyone, self.last_checkpoint())
        if not self.spikes.is_spike(loss):
            return
        rows = named(self._from_all([s for batch in self._step_batches for s in batch.rows()]))
        what = f"step {step}: the loss jumped to {loss:.4g} from about {self.spikes.usual():.4g}; rows: {rows}"
        if self.loop.on_loss_spike == "stop":
            kept = self.last_checkpoint() or "none"
            raise RunError(f"{what}: stopped before the weights were changed (train.on_loss_spike), checkpoint: {kept}")
        if self.loop.on_loss_spike == "skip":
            # An optimizer skips parameters without a gradient: no update, no decay, no change of its moments.
            model.zero_grad(set_to_none=True)
            what += ": its update is skipped"
        self.warn(what)

    def _forget_step(self) -> None:
        self._step_batches = []
        self._step_loss = torch.zeros((), dtype=torch.float64)
        self._step_tokens = [0, 0]

    def _from_all(self, items: list[str]) -> list[str]:
        return gather_object(items) if self.accelerator.num_processes > 1 else items

    # ---- logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """transformers' numbers with the loss replaced by the meter's: whole-step losses, and loss by channel."""
        if "loss" in logs:
            # Collective: transformers logs the loss in every process, after the same steps.
            sums_2C = self.accelerator.reduce(self.meter.sums_2C, "sum")
            logs.update(self.meter.read(sums_2C))  # pyright: ignore[reportArgumentType]
        super().log(logs, start_time)

    # ---- checkpoints

    def loop_state(self) -> dict[str, Any]:
        # Collective: every process fills a checkpoint.
        sums_2C = self.accelerator.reduce(self.meter.sums_2C, "sum")
        meter = self.meter.state(sums_2C)  # pyright: ignore[reportArgumentType]
        return {**super().loop_state(), "meter": meter, "spikes": self.spikes.state()}

    def restore_loop(self, state: dict[str, Any]) -> None:
        super().restore_loop(state)
        self.meter.restore(state["meter"], self.args.should_save)
        self.spikes.restore(state["spikes"])
