"""What TRL calls the settings of `dpo` and `grpo`; next to `training_arguments.py`, the only place that knows."""

from __future__ import annotations

import math
from pathlib import Path

from trl.trainer.dpo_config import DPOConfig
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.kto_config import KTOConfig

from counterpoint.configs.schema import DpoRun, GrpoRun
from counterpoint.train.loop.training_arguments import common_arguments, steps_of_epochs, without_data_parallel
from counterpoint.train.run.world import world_size


def steps_of(settings: DpoRun | GrpoRun, n_items: int, per_step: int) -> int:
    """Optimizer steps over `n_items` pairs, rated completions or groups, `per_step` of them in one.

    TRL leaves out groups that do not fill a step, and takes `grpo.iterations` steps on each that it samples.
    """
    train = settings.train
    if train.steps is not None:
        return train.steps
    if isinstance(settings, GrpoRun):
        return steps_of_epochs(train.epochs, max(1, n_items // per_step) * settings.grpo.iterations)
    return steps_of_epochs(train.epochs, math.ceil(n_items / per_step))


def dpo_arguments(settings: DpoRun, run_folder: Path, steps: int) -> DPOConfig:
    """TRL's arguments for a run over pairs."""
    dpo = settings.dpo
    args = DPOConfig(
        **common_arguments(settings, run_folder, steps),
        router_aux_loss_coef=settings.train.router_aux_loss_coef,
        max_length=None,
        beta=dpo.beta,
        loss_type=list(dpo.losses),
        loss_weights=list(dpo.loss_weights) if dpo.loss_weights is not None else None,
        label_smoothing=dpo.label_smoothing,
        disable_dropout=True,
        train_sampling_strategy="random" if settings.data.shuffle else "sequential",
    )
    return without_data_parallel(args)


def kto_arguments(settings: DpoRun, run_folder: Path, steps: int) -> KTOConfig:
    """TRL's arguments for a run over rated completions."""
    dpo = settings.dpo
    args = KTOConfig(
        **common_arguments(settings, run_folder, steps),
        router_aux_loss_coef=settings.train.router_aux_loss_coef,
        max_length=None,
        beta=dpo.beta,
        loss_type=dpo.losses[0],
        desirable_weight=dpo.wanted_weight,
        undesirable_weight=dpo.unwanted_weight,
        disable_dropout=True,
    )
    return without_data_parallel(args)


def grpo_arguments(settings: GrpoRun, run_folder: Path, steps: int) -> GRPOConfig:
    """TRL's arguments for a run over groups of rollouts. The rollouts of a step are `batch_rows` x `accumulation`."""
    grpo, rollout, train = settings.grpo, settings.rollout, settings.train
    rollouts = train.batch_rows * train.accumulation * world_size()
    args = GRPOConfig(
        **common_arguments(settings, run_folder, steps),
        router_aux_loss_coef=settings.train.router_aux_loss_coef,
        num_generations=grpo.group,
        generation_batch_size=rollouts,
        max_completion_length=rollout.completion_tokens,
        temperature=rollout.temperature,
        beta=grpo.beta,
        epsilon=grpo.clip[0],
        epsilon_high=grpo.clip[1],
        loss_type=grpo.loss,
        scale_rewards=grpo.scale,
        importance_sampling_level=grpo.ratio,
        num_iterations=grpo.iterations,
        mask_truncated_completions=grpo.mask_truncated,
        # An environment's rewards are weighed by its own settings.
        reward_weights=[reward.weight for reward in settings.rewards] + [1.0] * (rollout.environment is not None),
        shuffle_dataset=settings.data.shuffle,
        disable_dropout=True,  # an adapter that was trained with dropout
        # TRL starts no vLLM of its own: ours is behind `rollout_func`, and the trainer uses these arguments itself.
        use_vllm=False,
        vllm_importance_sampling_correction=rollout.correction != "off",
        vllm_importance_sampling_mode="sequence_mask" if rollout.correction == "off" else rollout.correction,
        vllm_importance_sampling_clip_max=rollout.correction_cap,
    )
    return without_data_parallel(args)
