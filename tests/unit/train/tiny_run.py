"""A small training run for tests: random gpt-oss, made-up tree rows.

Also a job for tests/forks.py, for runs that are killed or take
several processes, and a script, where the environment must stand before anything is imported."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import GptOssConfig, GptOssForCausalLM, TrainerCallback, TrainerState
from trl.trainer.sft_config import SFTConfig

from counterpoint.data.harmony.spans import Example
from counterpoint.data.layout.collate import Collator
from counterpoint.data.layout.tree import TreeRow, forest_of, tree_of
from counterpoint.train.checkpoints import save
from counterpoint.train.checkpoints.resume import Identity, newest_complete
from counterpoint.train.loop.optimizers import prepare_optimizer
from counterpoint.train.loop.sft_trainer import CounterpointTrainer
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.library_versions import checkpointing_arguments
from counterpoint.train.run.signals import StopSignal
from counterpoint.train.run.world import is_main_process, world_size

N_VOCAB = 61
CONFIG = {
    "vocab_size": N_VOCAB, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"], "initializer_range": 0.1, "router_aux_loss_coef": 0.9,
}  # fmt: skip


def tiny_model(seed: int = 0, lora: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(seed)
    config = GptOssConfig(**CONFIG)
    config._attn_implementation = "eager"
    model = GptOssForCausalLM(config).to(dtype)
    if dtype == torch.float64:
        # The grouped product that transformers takes otherwise has no float64.
        model.set_experts_implementation("eager")
    if not lora:
        return model
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    wanted = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], target_parameters=targets)
    return get_peft_model(model, wanted)


def example(random: np.random.Generator, source: str, turn: int, shared: np.ndarray) -> Example:
    n = int(random.integers(6, 24))
    ids = np.concatenate([shared, random.integers(1, N_VOCAB, n)]).astype(np.int32)
    channels = np.concatenate([np.zeros(len(shared) + 2), random.integers(1, 4, n - 2)]).astype(np.uint8)
    weights = np.where(channels > 0, np.where(channels == 1, 0.5, 1.0), 0.0).astype(np.float32)
    return Example(source, turn, ids, weights, channels)


def tiny_rows(n: int = 24, seed: int = 0, packed: bool = True) -> list[TreeRow]:
    """Trees of one to three examples with a shared beginning, some packed two to a row."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        shared = random.integers(1, N_VOCAB, int(random.integers(2, 8)))
        turns = [example(random, f"rows.jsonl:{i + 1}", turn, shared) for turn in range(int(random.integers(1, 4)))]
        rows.append(tree_of(turns))
    if not packed:
        return rows
    return [forest_of(rows[:2]), *rows[2:]]


class Curve(TrainerCallback):
    """Every step's loss, exactly, and the metrics of each log line that do not depend on time."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            timeless = {key: value for key, value in logs.items() if "per_second" not in key}
            self.logs.append({**timeless, "step": state.global_step})
            self.losses.append([state.global_step, logs["loss"]])


def make(
    folder: Path,
    *,
    rows: list[TreeRow] | None = None,
    model: Any = None,
    lora: bool = True,
    seed: int = 0,
    steps: int = 12,
    batch: int = 2,
    accumulation: int = 2,
    every: int = 4,
    keep: int = 2,
    log_every: int = 1,
    rate: float = 5e-3,
    callbacks: list[Any] | None = None,
    stop: StopSignal | None = None,
    identity: Identity | None = None,
    loop: dict[str, Any] | None = None,
    warn: Any = print,
    **args: Any,
) -> CounterpointTrainer:
    rows = tiny_rows() if rows is None else rows
    settings = SFTConfig(
        output_dir=str(folder), seed=seed, data_seed=seed, max_steps=steps, per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation, learning_rate=rate, lr_scheduler_type="cosine",
        save_strategy="steps", save_steps=every, logging_steps=log_every, use_cpu=True, bf16=False, max_length=None,
        **checkpointing_arguments(False), dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False, report_to="none", disable_tqdm=True, logging_nan_inf_filter=False,
        dataloader_pin_memory=False, router_aux_loss_coef=0.0, log_level="error", **{"warmup_steps": 2, **args},
    )  # fmt: skip
    curve = Curve()
    trainer = CounterpointTrainer(
        tiny_model(seed, lora) if model is None else model,
        settings,
        rows,
        Collator(),
        LoopSettings(folder / "checkpoints", keep=keep, **(loop or {})),
        identity or Identity({"train": {"learning_rate": rate}}, "data", batch * accumulation),
        callbacks=[curve, *(callbacks or [])],
        stop=stop,
        warn=warn,
    )
    trainer.curve = curve  # type: ignore[attr-defined]
    return trainer


def weights_of(trainer: CounterpointTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.base.named_parameters() if p.requires_grad}


class Signal(TrainerCallback):
    """Sends this process a signal in the middle of the step after `step` (between two micro-batches)."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def kill_at_call(name: str, count: int) -> None:
    """kill -9 in place of the `count`-th call of `os.<name>`."""
    real, calls = getattr(os, name), [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(os, name, dying)


def kill_in_phase(method: str, file: str) -> None:
    """kill -9 in the second save, when `method` has written half of `file`."""
    owner: Any = TrainerState if method == "save_to_json" else CounterpointTrainer
    real, calls = getattr(owner, method), [0]

    def dying(self: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        result = real(self, path, *args, **kwargs)
        calls[0] += 1
        if calls[0] == 2:
            written = Path(path) if Path(path).name == file else Path(path) / file
            os.truncate(written, written.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, dying)


def pack_experts(model: Any) -> None:
    """Put made-up MXFP4 experts into the model."""
    from counterpoint.train.model.mxfp4 import frozen_mxfp4

    random = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        for name in ("gate_up_proj", "down_proj"):
            experts, inputs, outputs = getattr(layer.mlp.experts, name).shape
            blocks, scales = (experts, outputs, inputs // 32, 16), (experts, outputs, inputs // 32)
            packed = frozen_mxfp4(
                torch.randint(0, 256, blocks, dtype=torch.uint8, generator=random),
                torch.randint(118, 124, scales, dtype=torch.uint8, generator=random),
                torch.float32,
            )
            setattr(layer.mlp.experts, name, packed)


def lean_model(packed: bool = False) -> Any:
    """The tiny model on the lean path, with LoRA on attention and experts; its experts in MXFP4 where `packed`."""
    from counterpoint.configs.model_section import LoraSettings, ModelSettings
    from counterpoint.train.adapters.attach import attach_lora
    from counterpoint.train.adapters.implementations import use_implementations

    model = tiny_model(lora=False)
    if packed:
        pack_experts(model)
    model = attach_lora(model, LoraSettings(rank=4, alpha=8))
    use_implementations(model, ModelSettings())
    return model


def shard_on_cpu() -> None:
    """FSDP2 as `launch.strategy: fsdp2` sets it, also on a CPU, where accelerate leaves it out."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    from counterpoint.recipes.commands.launch import FSDP2

    os.environ.update(FSDP2)
    real: Any = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        real(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    setattr(AcceleratorState, "__init__", init)  # noqa: B010


def run(folder: Path, options: dict[str, Any]) -> int:
    """One run; `fault` is one of `step`, `call`, `phase` with its arguments; `resume` continues from what is there."""
    torch.set_num_threads(1)
    if options.pop("fsdp2", False):
        shard_on_cpu()
    if "n_rows" in options:
        options["rows"] = tiny_rows(options.pop("n_rows"))
    if options.pop("lean", False):
        options["model"] = lean_model(options.pop("packed", False))
    if "optim" in options:
        prepare_optimizer(options["optim"], "cpu")
    kind, *fault = options.pop("fault", [None])
    if kind in ("call", "phase"):
        {"call": kill_at_call, "phase": kill_in_phase}[kind](*fault)
    callbacks = [Signal(*fault)] if kind == "step" else []
    if is_main_process():
        save.clean_partial(folder / "checkpoints")
    checkpoint = newest_complete(folder)[0] if options.pop("resume", False) else None
    with StopSignal() as stop:
        trainer = make(folder, callbacks=callbacks, stop=stop, **options)
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    weights = {
        name: getattr(tensor, "full_tensor", lambda t=tensor: t)() for name, tensor in weights_of(trainer).items()
    }
    digest = {name: tensor.double().sum().item() for name, tensor in weights.items()}
    result = {"logs": trainer.curve.logs, "weights": digest, "from": checkpoint.step if checkpoint else 0}  # type: ignore[attr-defined]
    local = [getattr(p, "_local_tensor", p) for p in trainer.base.parameters()]
    result["packed_bytes"] = sum(getattr(p, "packed_bytes", p.nbytes if p.dtype == torch.uint8 else 0) for p in local)
    result["sharded"] = any(hasattr(p, "full_tensor") for p in trainer.base.parameters())
    if is_main_process():
        (folder / "result.json").write_text(json.dumps(result))
    return 143 if trainer.stopped and world_size() > 1 else stop.exit_code


def forked(folder: str, options: dict[str, Any]) -> int:
    """`run` as a job of tests/forks.py."""
    return run(Path(folder), options)


def sharded_command(arguments: list[str]) -> int:
    """The real command line in one of several processes, sharded on a CPU."""
    from counterpoint.recipes.cli import main

    torch.set_num_threads(1)
    shard_on_cpu()
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), json.loads(sys.argv[2])))
