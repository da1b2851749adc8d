"""The one place that knows what TRL and transformers call our settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trl.trainer.sft_config import SFTConfig

from counterpoint.configs.schema import RateSettings, SftRun, TrainingRun, TrainSettings
from counterpoint.train.loop.activation_offload import Offload
from counterpoint.train.loop.loss_guard import SpikePolicy
from counterpoint.train.loop.quantized import Quantized
from counterpoint.train.model.library_versions import checkpointing_arguments
from counterpoint.train.model.load import device_of
from counterpoint.train.run.world import world_size

# transformers wants a number; this one is never reached, and the last step is always saved.
NEVER = 2**31 - 1
DECAY_RATIO = 0.1


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs beyond TRL's arguments.

    checkpoints: their folder; keep: how many are kept; router_aux_loss_coef: factor of the load-balancing loss, 0 for
    none; lean_loss: hold the logits of a chunk of positions at a time; rates: factors of the learning rate;
    quantized: of training that knows its rounding; offload: activation_offload.py.
    """

    checkpoints: Path
    keep: int = 2
    on_loss_spike: SpikePolicy = "warn"
    spike_factor: float = 4.0
    router_aux_loss_coef: float = 0.0
    lean_loss: bool = True
    stop_without_learning: bool = True
    no_learning_steps: int = 5
    rates: RateSettings = field(default_factory=RateSettings)
    quantized: Quantized | None = None
    offload: Offload | None = None


def total_steps(settings: SftRun, n_rows: int, processes: int | None = None) -> int:
    """Optimizer steps of the run over `n_rows` training rows."""
    if settings.train.steps is not None:
        return settings.train.steps
    batches = math.ceil(math.ceil(n_rows / settings.train.batch_rows) / (processes or world_size()))
    return steps_of_epochs(settings.train.epochs, math.ceil(batches / settings.train.accumulation))


def steps_of_epochs(epochs: float, steps_each: int) -> int:
    """Steps of `epochs` passes. 1.1 passes of 10 steps are 11, although 1.1 x 10 is a little more in binary."""
    return max(1, math.ceil(round(epochs * steps_each, 6)))


def loop_settings(settings: TrainingRun, run_folder: Path) -> LoopSettings:
    train = settings.train
    common = LoopSettings(
        checkpoints=run_folder / "checkpoints",
        keep=train.keep_checkpoints,
        router_aux_loss_coef=train.router_aux_loss_coef,
        stop_without_learning=train.on_no_learning == "stop",
        no_learning_steps=train.no_learning_steps,
        rates=train.rates,
        quantized=Quantized(train.quantization_from, settings.seed) if train.quantization_aware else None,
        offload=Offload() if train.activation_offload else None,
    )
    if not isinstance(settings, SftRun):
        return common
    spikes = settings.train
    return replace(
        common,
        on_loss_spike=spikes.on_loss_spike,
        spike_factor=spikes.spike_factor,
        lean_loss=settings.model.loss == "lean",
    )


def sft_arguments(settings: SftRun, run_folder: Path, n_rows: int) -> SFTConfig:
    """TRL's arguments for a run over `n_rows` training rows. ModelError for a device that is not available."""
    args = SFTConfig(
        **common_arguments(settings, run_folder, total_steps(settings, n_rows)),
        # Our rows come collated, weighted and packed.
        max_length=None,
        packing=False,
        shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="random" if settings.data.shuffle else "sequential",
        router_aux_loss_coef=0.0,
        neftune_noise_alpha=settings.train.neftune_alpha,
        use_cache=False,
    )
    return without_data_parallel(args)


def common_arguments(settings: TrainingRun, run_folder: Path, steps: int) -> dict[str, Any]:
    """The arguments that the trainers of all recipes share. ModelError for a device that is not available."""
    train = settings.train
    device = device_of(train.device).type
    plain = "adamw_torch_fused" if device == "cuda" else "adamw_torch"
    return {
        "output_dir": str(run_folder),
        "ddp_timeout": math.ceil(settings.launch.timeout),
        "seed": settings.seed,
        "data_seed": settings.seed,
        "max_steps": steps,
        "per_device_train_batch_size": train.batch_rows,
        "per_device_eval_batch_size": train.batch_rows,
        "gradient_accumulation_steps": train.accumulation,
        "learning_rate": train.learning_rate,
        **schedule_arguments(train, steps),
        "weight_decay": train.weight_decay,
        "adam_beta1": train.adam_betas[0],
        "adam_beta2": train.adam_betas[1],
        "adam_epsilon": train.adam_epsilon,
        "max_grad_norm": train.max_grad_norm,
        "optim": plain if train.optimizer == "adamw" else train.optimizer,
        **checkpointing_arguments(train.activation_checkpointing is True),
        "logging_steps": train.log_every,
        "save_steps": train.checkpoint_every or NEVER,
        "use_cpu": device == "cpu",
        **_FIXED,
    }


def schedule_arguments(train: TrainSettings, steps: int) -> dict[str, Any]:
    """The schedule over `steps`, by what transformers calls it."""
    warmup = train.warmup_steps if train.warmup_steps is not None else math.ceil(train.warmup_ratio * steps)
    kind, options = train.schedule, {}
    if train.schedule == "constant":
        kind = "constant_with_warmup"
    elif train.schedule == "wsd":
        ratio = DECAY_RATIO if train.decay_ratio is None else train.decay_ratio
        decay = min(math.ceil(ratio * steps), max(0, steps - warmup))
        kind = "warmup_stable_decay"
        options = {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": train.min_rate}
    elif train.min_rate and train.schedule == "cosine":
        kind, options = "cosine_with_min_lr", {"min_lr_rate": train.min_rate}
    elif train.min_rate and warmup < steps:  # transformers divides by what is left after the warm-up
        kind, options = "polynomial", {"lr_end": train.min_rate * train.learning_rate, "power": 1.0}
    return {"lr_scheduler_type": kind, "lr_scheduler_kwargs": options or None, "warmup_steps": warmup}


def without_data_parallel(args: Any) -> Any:
    """More GPUs than processes: transformers would put DataParallel around the model, which TRL refuses."""
    args._n_gpu = min(args.n_gpu, 1)
    return args


_FIXED: dict[str, Any] = {
    # Weights keep the type they were loaded in; the trainer opens autocast itself. Accelerate's mixed precision would
    # copy every hidden state to float32.
    "bf16": False,
    "fp16": False,
    "logging_first_step": True,
    "save_strategy": "steps",
    "remove_unused_columns": False,
    "report_to": "none",
    "push_to_hub": False,
    "eval_strategy": "no",
    "disable_tqdm": True,
    "log_level": "warning",
    # A loss that is not finite must stop the run, not be logged as the mean of the others.
    "logging_nan_inf_filter": False,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": False,
}
