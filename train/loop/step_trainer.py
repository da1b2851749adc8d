"""Training by whole steps on transformers' Trainer: the micro-batches of a step are made here."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from counterpoint.data.layout.collate import Collator
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.base_trainer import BaseTrainer
from counterpoint.train.loop.policy_loss import Measures
from counterpoint.train.loop.policy_metrics import StepMetrics
from counterpoint.train.loop.policy_rows import MicroBatch
from counterpoint.train.loop.router_loss import RouterLoss
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.run.signals import StopSignal


class StepTrainer(BaseTrainer, Trainer):
    """What learning from rewards and from pairs share. Dropout is off: a step compares passes with each other."""

    def __init__(
        self,
        loaded: LoadedModel,
        args: TrainingArguments,
        items: Sequence[int],
        data_collator: Callable[[Sequence[int]], dict[str, Any]],
        loop: LoopSettings,
        identity: Identity,
        *,
        callbacks: list[TrainerCallback] | None = None,
        extras: Callable[[Path], None] | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        self.loaded = loaded
        for module in loaded.model.modules():  # an adapter that was trained with dropout
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        super().__init__(
            model=loaded.model,
            args=args,
            data_collator=data_collator,  # pyright: ignore[reportArgumentType]
            train_dataset=items,  # pyright: ignore[reportArgumentType]
            callbacks=callbacks,
        )
        self.set_up_loop(loop, identity, extras, stop)
        self.collate = Collator(loaded.vocabulary_map.rows)
        self.router_loss = RouterLoss(self.base) if loop.router_aux_loss_coef else None
        self.autocast = any(p.dtype == torch.bfloat16 for p in self.base.parameters())
        self._metrics: defaultdict[str, list[float]] = defaultdict(list)

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """bfloat16 autocast over a bfloat16 base: adapters stay float32 and multiply in bfloat16."""
        stack = contextlib.ExitStack()
        stack.enter_context(torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.autocast))
        return stack

    def learn(
        self,
        model: nn.Module,
        batches: Sequence[MicroBatch],
        loss_of: Callable[[MicroBatch], tuple[torch.Tensor, Measures]],
        around: Callable[[MicroBatch], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> tuple[torch.Tensor, StepMetrics]:
        """Forward and backward passes of a step: its loss, times the processes to undo DDP's mean, and what all
        processes have measured. Collective. around: both passes of a micro-batch."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        measured, processes = StepMetrics(), self.accelerator.num_processes
        for number, batch in enumerate(batches):
            last = number + 1 == len(batches)
            with around(batch), contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss, measures = loss_of(batch)
                    if self.router_loss is not None:
                        balance = self.router_loss.read()
                        measures.means["aux_loss"] = torch.stack([balance.detach(), torch.ones_like(balance)])
                        loss = loss + self.loop.router_aux_loss_coef / len(batches) / processes * balance
                    loss = loss * processes
                self.accelerator.backward(loss)
            measured.add(measures)
            total += loss.detach()
        return total, measured.of_all(gather_object)

    def routed(self) -> contextlib.AbstractContextManager[Any]:
        """Around the forward pass that the router's loss is of."""
        return self.router_loss.recording() if self.router_loss else contextlib.nullcontext()

    def equally_many(self, batches: list[MicroBatch], idle: MicroBatch) -> list[MicroBatch]:
        """As many micro-batches in every process, at least one, on the device. Collective."""
        most = max(1, *gather_object([len(batches)]))
        batches = batches + [dict(idle) for _ in range(most - len(batches))]
        return [{name: tensor.to(self.args.device) for name, tensor in batch.items()} for batch in batches]

    # ---- what is logged

    def keep(self, values: Mapping[str, float]) -> None:
        """Numbers of a step, of which the next log line has the means."""
        for name, value in values.items():
            if value == value:
                self._metrics[name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """transformers' numbers with the means, since the last such line, of what the steps have measured."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._metrics.items()}
            self._metrics.clear()
        super().log(logs, start_time)

    def loop_state(self) -> dict[str, Any]:
        return {**super().loop_state(), "metrics": dict(self._metrics)}

    def restore_loop(self, state: dict[str, Any]) -> None:
        super().restore_loop(state)
        self._metrics.update(state.get("metrics", {}))
