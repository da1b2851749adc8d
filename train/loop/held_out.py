"""What rows that are not trained say: their loss, the preference of held-out pairs, the reward of held-out prompts.

Each measurement gives `valid_loss` (or `valid_reward`) over all sets, and of each set with a name `valid_NAME_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from counterpoint.data.harmony.spans import CHANNEL_NAMES
from counterpoint.data.layout.tree import TreeRow
from counterpoint.train.loop.base_trainer import BaseTrainer
from counterpoint.train.loop.meter import Meter
from counterpoint.train.loop.row_dataset import ROW, RowCollator
from counterpoint.train.sampling.sample import SamplingStoppedError

if TYPE_CHECKING:
    from counterpoint.train.loop.grpo_items import Item
    from counterpoint.train.loop.grpo_rollouts import Rollouts
    from counterpoint.train.loop.preference_trainer import PreferenceTrainer
    from counterpoint.train.loop.sft_trainer import CounterpointTrainer


Measure = Callable[[], dict[str, float]]


class HeldOut(TrainerCallback):
    """Logs what `measure` gives, before the first step where `at_start`, every `every` steps and after the last.

    A `StepCallback` (base_trainer.py), for every process. say: one line for each measurement.
    """

    def __init__(
        self,
        trainer: BaseTrainer,
        measure: Measure,
        every: int | None,
        at_start: bool,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.trainer, self.measure, self.every, self.at_start, self.say = trainer, measure, every, at_start, say

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.at_start and state.global_step == 0:
            self._measure(state)

    def after_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        last = state.global_step >= state.max_steps
        if last or (self.every and state.global_step % self.every == 0):
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        try:
            values = self.measure()
        except SamplingStoppedError:
            self.say(f"the held-out data at step {state.global_step} is left out: a signal came")
            return
        self.trainer.log_measured(values)
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
        self.say(f"held-out step {state.global_step}: {told}")


@torch.no_grad()
def held_out_loss(trainer: CounterpointTrainer, sets: Mapping[str, Sequence[TreeRow]]) -> dict[str, float]:
    """Weighted mean of the loss of each set, overall and by channel. Every process takes a part of the rows."""
    sums = {name: _sums(trainer, rows) for name, rows in sets.items()}
    values = _losses("valid_loss", sum(sums.values(), torch.zeros(2, len(CHANNEL_NAMES), dtype=torch.float64)))
    for name, sums_2C in sums.items():
        if name:
            values |= _losses(f"valid_{name}_loss", sums_2C)
    return values


def _losses(prefix: str, sums_2C: torch.Tensor) -> dict[str, float]:
    loss_C, weight_C = sums_2C.tolist()
    if not sum(weight_C):
        return {}
    channels = zip(CHANNEL_NAMES, loss_C, weight_C, strict=True)
    by_channel = {f"{prefix}_{name}": loss / weight for name, loss, weight in channels if weight > 0}
    return {prefix: sum(loss_C) / sum(weight_C), **by_channel}


def _sums(trainer: CounterpointTrainer, rows: Sequence[TreeRow]) -> torch.Tensor:
    accelerator, model, meter = trainer.accelerator, cast(Any, trainer.model_wrapped), Meter(trainer.args.device)
    was_training = model.training
    model.eval()
    for numbers, counts in _share(len(rows), trainer.args.per_device_eval_batch_size, accelerator):
        _go_on(trainer)
        batch = RowCollator(rows, trainer.collate)([{ROW: number} for number in numbers])
        inputs = trainer._prepare_inputs(batch)  # transformers' way to the device
        with trainer.compute_loss_context_manager():
            _, nll_T = trainer.nll(model, inputs, 1.0)
        meter.add_targets(nll_T, inputs["target_weights"] * counts, inputs["target_channels"])
    model.train(was_training)
    # Collective: `HeldOut` is a callback of every process, and due at the same steps.
    return cast(torch.Tensor, accelerator.reduce(meter.sums_2C, "sum")).cpu()


def _go_on(trainer: Any) -> None:
    """SamplingStoppedError in every process where a signal came to one. Collective: all take equally many batches."""
    flag = torch.tensor(float(trainer.stop.received is not None), device=trainer.args.device)
    if float(cast(torch.Tensor, trainer.accelerator.reduce(flag, "sum"))) > 0:
        raise SamplingStoppedError


def _share(n_rows: int, batch_rows: int, accelerator: Accelerator) -> Iterator[tuple[list[int], float]]:
    """This process' batches of row numbers, each with the factor 1. All processes get equally many, since a sharded
    model waits for all of them in every forward pass: missing batches are filled up with ones of factor 0."""
    mine = list(range(accelerator.process_index, n_rows, accelerator.num_processes))
    batches = math.ceil(math.ceil(n_rows / accelerator.num_processes) / batch_rows)
    for i in range(batches):
        numbers = mine[i * batch_rows : (i + 1) * batch_rows]
        yield (numbers, 1.0) if numbers else ([0], 0.0)


def held_out_pairs(trainer: PreferenceTrainer, sets: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Mean loss of each set; of pairs also `valid_accuracy`, the share whose wanted side is preferred, and
    `valid_margin`, the mean difference of their implicit rewards. Every process takes a part of the rows."""
    model: Any = trainer.model_wrapped
    was_training = model.training
    model.eval()
    found = {name: (len(rows), trainer.held_out(rows)) for name, rows in sets.items()}
    model.train(was_training)
    values = _means("valid", list(found.values()))
    for name, each in found.items():
        if name:
            values |= _means(f"valid_{name}", [each])
    return values


def _means(prefix: str, sets: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    total = sum(n for n, _ in sets)
    names = {"loss": "loss", "accuracy": "rewards/accuracies"}
    names |= {"margin": "rewards/margins"} if "rewards/accuracies" in sets[0][1] else {}
    return {
        f"{prefix}_{name}": sum(n * values[key] for n, values in sets) / total
        for name, key in names.items()
        if key in sets[0][1]
    }


def held_out_rewards(
    rollouts: Rollouts, sets: Mapping[str, Sequence[Item]], stops: Callable[[], bool] | None = None
) -> dict[str, float]:
    """Mean of the weighted sum of all rewards on one rollout of each held-out item, of each reward and of right
    channels, and the sum of each set. Every process takes a part of the items; stops: as of `Rollouts.tried`."""
    rows = {name: rollouts.tried(items, stops) for name, items in sets.items()}
    everything = [row for each in rows.values() for row in each]
    values = {"valid_reward": _mean([row["reward"] for row in everything])}
    for name in dict.fromkeys(name for row in everything for name in row["rewards"]):
        found = [row["rewards"][name] for row in everything if row["rewards"].get(name) is not None]
        if found:
            values[f"valid_rewards/{name}"] = _mean(found)
    values["valid_channel_correct"] = _mean([row["channel_correct"] for row in everything])
    return values | {f"valid_{name}_reward": _mean([row["reward"] for row in each]) for name, each in rows.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
