"""Learning from pairs, and from completions that are rated one by one, on transformers' Trainer: packed tree rows, the
loss of a whole step.

The pairs of a step are packed into micro-batches of tree rows. The reference's log-probabilities are taken first, of
the same rows; for `kto` so is the drift, over all processes, because every completion's loss depends on it.

Legend: T targets, V completions of this process (two for each unit), and one that counts for nothing.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from trl.models.utils import prepare_fsdp

from counterpoint.configs.preference_section import DpoSettings
from counterpoint.data.dataset.pairs import Pair, Rated
from counterpoint.train.adapters.attach import add_reference, as_reference, is_fresh
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.head import target_hidden
from counterpoint.train.loop.log_probs import target_log_probs, target_log_probs_and_choices
from counterpoint.train.loop.policy_loss import Measures
from counterpoint.train.loop.policy_metrics import StepMetrics
from counterpoint.train.loop.policy_rows import MicroBatch
from counterpoint.train.loop.preference_loss import Side, pair_loss, rated_loss
from counterpoint.train.loop.preference_rows import Unit, filling, micro_batches, units_of
from counterpoint.train.loop.step_trainer import StepTrainer
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.run.signals import StopSignal
from counterpoint.train.sampling.sample import SamplingStoppedError


@dataclass(frozen=True)
class _Part:
    """A process's units of a step, or of a held-out set.

    good_V: completions that are wanted; tokens_V: compared ones of each. rows, tokens: of all processes, their units
    and the compared tokens of their chosen sides.
    """

    units: list[Unit]
    good_V: torch.Tensor
    tokens_V: torch.Tensor
    rows: int
    tokens: int


class PreferenceTrainer(StepTrainer):
    """Trains `loaded.model` on pairs, or on rated completions where `dpo` has a loss of those.

    Its reference is the model as it is given: the base under a fresh adapter, a frozen copy of an adapter that was
    trained before, or a copy of the model where all weights are trained. row_tokens: largest tree row, unless a single
    unit is larger.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        args: TrainingArguments,
        rows: Sequence[Pair] | Sequence[Rated],
        dpo: DpoSettings,
        row_tokens: int,
        loop: LoopSettings,
        identity: Identity,
        *,
        callbacks: list[TrainerCallback] | None = None,
        extras: Callable[[Path], None] | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        self.rows, self.dpo, self.row_tokens = rows, dpo, row_tokens
        adapted = hasattr(loaded.model, "peft_config")
        reference = None if adapted else copy.deepcopy(loaded.model).requires_grad_(False).eval()
        if adapted and not is_fresh(loaded.model):
            add_reference(cast(Any, loaded.model))
        super().__init__(
            loaded,
            args,
            range(len(rows)),
            lambda numbers: {"numbers": torch.tensor(numbers)},
            loop,
            identity,
            callbacks=callbacks,
            extras=extras,
            stop=stop,
        )
        if reference is not None:
            if self.is_fsdp_enabled:
                prepare_fsdp(reference, self.accelerator)  # in place
            reference.to(self.args.device)
        self.reference: Any = reference

    @property
    def _compared(self) -> tuple[int, ...]:
        """The sides of a unit that the loss is of."""
        return (0,) if self.dpo.rated else (0, 1)

    @property
    def _drifts(self) -> bool:
        """Whether the loss needs the drift of the model."""
        return self.dpo.losses == ("kto",)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The passes of a step; its loss, times the processes to undo DDP's mean."""
        part = self._part([self.rows[n] for numbers in gather_object([inputs["numbers"].tolist()]) for n in numbers])
        batches = self._batches(part, self._compared)
        model.train()
        reference_V, drift = self._known(model, part, batches)
        total, measured = self.learn(model, batches, lambda batch: self._loss(model, part, batch, reference_V, drift))
        seen = sum(unit[side].tokens for unit in part.units for side in self._compared)
        self.state.num_input_tokens_seen += sum(gather_object([seen]))
        self.keep({**_with_margins(measured.values()), "num_tokens": self.state.num_input_tokens_seen})
        if self.dpo.rated:
            self.keep({"kl": float(drift)})
        return total

    @torch.no_grad()
    def held_out(self, rows: Sequence[Any]) -> dict[str, float]:
        """The loss of rows that are not trained, as one batch, and of pairs `rewards/accuracies` and `rewards/margins`.
        Collective; SamplingStoppedError in all processes where a signal came to one."""
        model = self.model_wrapped
        part = self._part(rows)
        batches = self._batches(part, self._compared)
        reference_V, drift = self._known(model, part, batches)
        policy_V = self._sums(model, self.base, part, batches)
        everything = torch.arange(len(part.units), device=self.args.device)
        loss, measures = self._loss_of(part, everything, policy_V, reference_V, drift)
        found = StepMetrics()
        measures.means["loss"] = torch.stack([loss, loss.new_ones(())])
        found.add(measures)
        values = _with_margins(found.of_all(gather_object).values())
        return values | {"loss": values["loss"] * self.accelerator.num_processes}

    # ---- the units of a step

    def _part(self, rows: Sequence[Any]) -> _Part:
        """This process's of the rows of all."""
        units = units_of(rows)
        of_pair = [[True, False] if isinstance(row, Pair) else [row.wanted] * 2 for row in rows]
        tokens = [[sum(side.mask) for side in unit] for unit in units]
        world, place, device = self.accelerator.num_processes, self.accelerator.process_index, self.args.device
        mine = slice(len(rows) * place // world, len(rows) * (place + 1) // world)
        return _Part(
            units[mine],
            torch.tensor(of_pair[mine], device=device, dtype=torch.bool).flatten(),
            torch.tensor(tokens[mine], device=device, dtype=torch.long).flatten(),
            len(rows),
            sum(counts[0] for counts in tokens),
        )

    def _batches(self, part: _Part, sides: Sequence[int]) -> list[MicroBatch]:
        """Micro-batches of these sides, equally many in all processes."""
        batches = micro_batches(part.units, sides, self.row_tokens, self.collate)
        idle = filling(self.collate, len(part.units), self.loaded.vocabulary_map.ids([0]).tolist())
        return self.equally_many(batches, idle)

    @torch.no_grad()
    def _known(self, model: Any, part: _Part, compared: list[MicroBatch]) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probabilities (V,) under the reference, drift). compared: micro-batches of what the loss is of. The
        completions of others are in rows of their own, so that no row is longer than those that are trained."""
        foreign = self._batches(part, (1,)) if self._drifts else []
        with self._reference(model) as (reference, base):
            reference_V = self._sums(reference, base, part, compared + foreign)
        if not self._drifts:
            return reference_V, torch.zeros((), device=self.args.device)
        moved = (self._sums(model, self.base, part, foreign) - reference_V)[1:-1:2].sum()
        return reference_V, (cast(torch.Tensor, self.accelerator.reduce(moved, "sum")) / part.rows).clamp(min=0)

    @contextlib.contextmanager
    def _reference(self, model: Any) -> Iterator[tuple[Any, Any]]:
        """(the model before training, its base)."""
        if self.reference is not None:
            yield self.reference, self.reference
            return
        with as_reference(self.base):
            yield model, self.base

    @torch.no_grad()
    def _sums(self, model: Any, base: Any, part: _Part, batches: Sequence[MicroBatch]) -> torch.Tensor:
        """The log-probability (V,) of each completion that is in `batches`, without gradients. Collective."""
        sums_V = torch.zeros(2 * len(part.units) + 1, device=self.args.device)
        for batch in batches:
            self._go_on()
            with self.compute_loss_context_manager():
                hidden_TH, weight_VH = target_hidden(model, base, batch)
                log_prob_T, _ = target_log_probs(hidden_TH, weight_VH, batch["target_ids"])
            sums_V = sums_V.to(log_prob_T.dtype).index_add(0, batch["side"], log_prob_T)
        return sums_V

    def _go_on(self) -> None:
        """SamplingStoppedError in every process where a signal came to one while nothing is trained."""
        if self.model_wrapped is None or self.model_wrapped.training:
            return
        flag = torch.tensor(float(self.stop.received is not None), device=self.args.device)
        if float(cast(torch.Tensor, self.accelerator.reduce(flag, "sum"))) > 0:
            raise SamplingStoppedError

    # ---- the loss

    def _loss(
        self, model: nn.Module, part: _Part, batch: MicroBatch, reference_V: torch.Tensor, drift: torch.Tensor
    ) -> tuple[torch.Tensor, Measures]:
        """Of a micro-batch."""
        with self.routed():
            hidden_TH, weight_VH = target_hidden(model, self.base, batch)
        log_prob_T, entropy_T, first_T = target_log_probs_and_choices(hidden_TH, weight_VH, batch["target_ids"])
        policy_V = torch.zeros_like(reference_V).index_add(0, batch["side"], log_prob_T)
        loss, measures = self._loss_of(part, batch["units"], policy_V, reference_V, drift)
        real_T = batch["side"] < len(part.good_V)
        good_T = part.good_V[batch["side"].clamp(max=len(part.good_V) - 1)]
        with torch.no_grad():
            logit_T = hidden_TH @ weight_VH.mean(0).to(hidden_TH.dtype)
        measures.means |= {
            "entropy": _mean(entropy_T, real_T),
            "mean_token_accuracy": _mean(first_T, real_T & good_T),
            "logits/chosen": _mean(logit_T, real_T & good_T),
            "logits/rejected": _mean(logit_T, real_T & ~good_T),
        }
        return loss, measures

    def _loss_of(
        self,
        part: _Part,
        units_U: torch.Tensor,
        policy_V: torch.Tensor,
        reference_V: torch.Tensor,
        drift: torch.Tensor,
    ) -> tuple[torch.Tensor, Measures]:
        """Of some units, whose completions' log-probabilities are given."""
        sides = []
        for number in (2 * units_U, 2 * units_U + 1):
            sides.append(Side(policy_V[number], reference_V[number], part.tokens_V[number]))
        one, other = sides
        if self.dpo.rated:
            wanted_U = part.good_V[2 * units_U]
            loss = rated_loss(self.dpo, one, wanted_U, drift, 1 / part.rows)
            kinds = {"chosen": (one, wanted_U), "rejected": (one, ~wanted_U)}
            means = {}
        else:
            loss = pair_loss(self.dpo, one, other, 1 / part.rows, 1 / max(1, part.tokens))
            every_U = torch.ones_like(units_U, dtype=torch.bool)
            kinds = {"chosen": (one, every_U), "rejected": (other, every_U)}
            means = {"rewards/accuracies": _mean(one.ratio > other.ratio, every_U)}
        for name, (side, is_U) in kinds.items():
            means[f"rewards/{name}"] = _mean(self.dpo.beta * side.ratio, is_U)
            means[f"logps/{name}"] = _mean(side.policy, is_U)
        return loss, Measures(means, {}, {}, torch.zeros((), device=self.args.device))


def _mean(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Sum and number of what counts."""
    return torch.stack([values.detach().float().masked_fill(~counts, 0.0).sum(), counts.sum().float()])


def _with_margins(values: dict[str, float]) -> dict[str, float]:
    if "rewards/chosen" in values and "rewards/rejected" in values:
        values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
    return values
