"""What the trainers of `dpo` and `grpo` call their settings; with `training_arguments.py`, the only such place."""

from __future__ import annotations

import math
from pathlib import Path

from transformers import TrainingArguments

from counterpoint.configs.schema import DpoRun, GrpoRun
from counterpoint.train.loop.grpo_trainer import PolicySettings
from counterpoint.train.loop.policy_loss import PolicyLoss
from counterpoint.train.loop.step_order import StepOrder
from counterpoint.train.loop.training_arguments import common_arguments, steps_of_epochs, without_data_parallel
from counterpoint.train.run.world import rows_per_step, world_size
from counterpoint.train.sampling.truncation import Truncation


def steps_of(settings: DpoRun | GrpoRun, n_items: int, per_step: int) -> int:
    """Optimizer steps over `n_items` pairs, rated completions or groups, `per_step` of them in one.

    Groups that do not fill a step are left out, and `grpo.iterations` steps are taken on what each samples.
    """
    train = settings.train
    if train.steps is not None:
        return train.steps
    if isinstance(settings, GrpoRun):
        return steps_of_epochs(train.epochs, max(1, n_items // per_step) * settings.grpo.iterations)
    return steps_of_epochs(train.epochs, math.ceil(n_items / per_step))


def preference_arguments(settings: DpoRun, run_folder: Path, steps: int) -> TrainingArguments:
    """transformers' arguments: a batch of the data set is a step's, whose micro-batches the trainer makes itself."""
    common = common_arguments(settings, run_folder, steps)
    rows = settings.train.batch_rows * settings.train.accumulation
    common |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1}
    order = "random" if settings.data.shuffle else "sequential"
    return without_data_parallel(TrainingArguments(**common, train_sampling_strategy=order))


def pair_tokens(settings: DpoRun) -> int:
    """Tokens of the largest row of pairs, or of rated completions: both sides of one, or the row of one completion."""
    return settings.dpo.row_tokens or settings.data.max_tokens * (1 if settings.dpo.rated else 2)


def grpo_arguments(settings: GrpoRun, run_folder: Path, steps: int) -> TrainingArguments:
    """transformers' arguments: an item of the data set is a step, whose micro-batches the trainer makes itself."""
    common = common_arguments(settings, run_folder, steps)
    common |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    return without_data_parallel(TrainingArguments(**common, train_sampling_strategy="sequential"))


def sampled_groups(settings: GrpoRun, processes: int | None = None) -> int:
    """Groups that a step samples, `grpo.oversample` times those that it learns from, in equal shares of rollouts."""
    world = processes or world_size()
    groups = math.ceil(round(rows_per_step(settings, world) // settings.grpo.group * settings.grpo.oversample, 6))
    while groups * settings.grpo.group % world:
        groups += 1
    return groups


def policy_settings(settings: GrpoRun, n_items: int) -> PolicySettings:
    """n_items: prompts at their efforts, of which `batch_rows` x `accumulation` / `group` are sampled in a step."""
    grpo, rollout = settings.grpo, settings.rollout
    loss = PolicyLoss(
        grpo.loss,
        grpo.clip,
        grpo.ratio,
        grpo.beta,
        rollout.correction,
        rollout.correction_cap,
        rollout.completion_tokens,
        rollout.correction_floor,
        grpo.kl_ratio,
        grpo.ratio_cap,
        grpo.off_policy,
        grpo.entropy_bonus,
        rollout.ratio_to == "sampled",
    )
    learned = rows_per_step(settings) // grpo.group
    order = StepOrder(n_items, sampled_groups(settings), settings.seed, settings.data.shuffle)
    return PolicySettings(
        loss,
        order,
        rollout.temperature,
        grpo.row_tokens or settings.data.max_tokens + rollout.completion_tokens,
        grpo.scale,
        grpo.baseline,
        learned if grpo.oversample > 1 else None,
        grpo.top_entropy,
        grpo.iterations,
        grpo.mask_truncated,
        Truncation.of(rollout),
        rollout.routes == "replay",
    )
