"""What TRL calls the settings of `dpo` and `grpo`; beside `arguments.py`, the only place that knows."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

from trl.trainer.dpo_config import DPOConfig
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.kto_config import KTOConfig

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.schema import DpoRun, GrpoRun
from counterpoint.train.loop.arguments import NEVER, SCHEDULES, world_size
from counterpoint.train.model.load import device_of


def steps_of(settings: DpoRun | GrpoRun, n_items: int, per_step: int) -> int:
    """Optimizer steps over `n_items` pairs, rated completions or groups, `per_step` of them in one."""
    train = settings.train
    return train.steps if train.steps is not None else math.ceil(train.epochs * math.ceil(n_items / per_step))


def dpo_arguments(settings: DpoRun, run_folder: Path, steps: int) -> DPOConfig:
    """TRL's arguments for a run over pairs."""
    dpo = settings.dpo
    args = DPOConfig(
        **_common(settings, run_folder, steps),
        max_length=None,
        beta=dpo.beta,
        loss_type=list(dpo.losses),
        loss_weights=list(dpo.loss_weights) if dpo.loss_weights is not None else None,
        label_smoothing=dpo.label_smoothing,
        disable_dropout=True,
        train_sampling_strategy="random" if settings.data.shuffle else "sequential",
    )
    args._n_gpu = min(args.n_gpu, 1)
    return args


def kto_arguments(settings: DpoRun, run_folder: Path, steps: int) -> KTOConfig:
    """TRL's arguments for a run over rated completions."""
    dpo = settings.dpo
    args = KTOConfig(
        **_common(settings, run_folder, steps),
        max_length=None,
        beta=dpo.beta,
        loss_type=dpo.losses[0],
        desirable_weight=dpo.wanted_weight,
        undesirable_weight=dpo.unwanted_weight,
        disable_dropout=True,
    )
    args._n_gpu = min(args.n_gpu, 1)
    return args


def grpo_arguments(settings: GrpoRun, run_folder: Path, steps: int) -> GRPOConfig:
    """TRL's arguments for a run over groups of rollouts. The rollouts of a step are `batch_rows` x `accumulation`."""
    grpo, rollout, train = settings.grpo, settings.rollout, settings.train
    rollouts = train.batch_rows * train.accumulation * world_size()
    args = GRPOConfig(
        **_common(settings, run_folder, steps),
        num_generations=grpo.group,
        generation_batch_size=rollouts,
        max_completion_length=rollout.completion_tokens,
        temperature=rollout.temperature,
        beta=grpo.beta,
        epsilon=grpo.epsilon,
        epsilon_high=grpo.epsilon_high,
        loss_type=grpo.loss,
        scale_rewards=grpo.scale,
        importance_sampling_level=grpo.ratio,
        num_iterations=grpo.iterations,
        mask_truncated_completions=grpo.mask_truncated,
        reward_weights=[reward.weight for reward in settings.rewards],
        shuffle_dataset=settings.data.shuffle,
        use_vllm=False,
    )
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _common(settings: DpoRun | GrpoRun, run_folder: Path, steps: int) -> dict[str, Any]:
    train, device = settings.train, device_of(settings.train.device).type
    if train.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("train.optimizer: adamw_8bit needs bitsandbytes: pip install bitsandbytes, or use adamw")
    optimizers = {"adamw": "adamw_torch_fused" if device == "cuda" else "adamw_torch", "adamw_8bit": "adamw_8bit"}
    return {
        "output_dir": str(run_folder),
        "seed": settings.seed,
        "data_seed": settings.seed,
        "max_steps": steps,
        "per_device_train_batch_size": train.batch_rows,
        "gradient_accumulation_steps": train.accumulation,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": SCHEDULES[train.schedule],
        "warmup_steps": train.warmup_steps if train.warmup_steps is not None else math.ceil(train.warmup_ratio * steps),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": optimizers[train.optimizer],
        "gradient_checkpointing": train.activation_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if train.activation_checkpointing else None,
        "router_aux_loss_coef": train.router_aux_loss_coef,
        "logging_steps": train.log_every,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": train.checkpoint_every or NEVER,
        "use_cpu": device == "cpu",
        "bf16": False,
        "fp16": False,
        "remove_unused_columns": False,
        "report_to": "none",
        "push_to_hub": False,
        "eval_strategy": "no",
        "disable_tqdm": True,
        "log_level": "warning",
        "logging_nan_inf_filter": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }
