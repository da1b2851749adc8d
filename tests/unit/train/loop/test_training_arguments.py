from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import CounterpointError
from counterpoint.configs.schema import SftRun
from counterpoint.train.loop.training_arguments import NEVER, loop_settings, sft_arguments, total_steps
from counterpoint.train.run.world import rows_per_step


def settings(**train: Any) -> SftRun:
    values = {"device": "cpu", **train}
    return SftRun.model_validate({"recipe": "sft", "data": {"train": "rows.jsonl"}, "train": values})


def test_what_must_never_be_left_to_defaults(tmp_path: Path) -> None:
    args = sft_arguments(settings(), tmp_path, 100)
    assert args.report_to == []
    assert args.max_length is None
    assert not args.packing
    assert not args.bf16
    assert not args.fp16
    assert not args.gradient_checkpointing
    assert not args.logging_nan_inf_filter
    assert args.router_aux_loss_coef == 0.0
    assert args.dataset_kwargs == {"skip_prepare_dataset": True}
    assert not args.remove_unused_columns
    assert args.eval_strategy == "no"
    assert args.use_cpu
    assert args.n_gpu <= 1


def test_settings_arrive(tmp_path: Path) -> None:
    run = settings(
        steps=30, batch_rows=3, accumulation=2, learning_rate=1e-3, schedule="constant", warmup_steps=4,
        weight_decay=0.1, max_grad_norm=0.5, checkpoint_every=7, log_every=5, activation_checkpointing=True,
    )  # fmt: skip
    args = sft_arguments(run, tmp_path, 100)
    got = (
        args.max_steps, args.per_device_train_batch_size, args.gradient_accumulation_steps, args.learning_rate,
        args.lr_scheduler_type, args.warmup_steps, args.weight_decay, args.max_grad_norm, args.save_steps,
        args.logging_steps, args.gradient_checkpointing,
    )  # fmt: skip
    assert got == (30, 3, 2, 1e-3, "constant_with_warmup", 4, 0.1, 0.5, 7, 5, True)
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert rows_per_step(run) == 6


@pytest.mark.parametrize(
    ("train", "n_rows", "steps"),
    [
        ({"epochs": 1, "batch_rows": 4}, 100, 25),
        ({"epochs": 1, "batch_rows": 4}, 101, 26),
        ({"epochs": 2.5, "batch_rows": 4, "accumulation": 5}, 101, 15),
        ({"epochs": 0.01, "batch_rows": 4}, 100, 1),
        ({"steps": 7, "epochs": 3}, 100, 7),
    ],
)
def test_steps(train: dict[str, Any], n_rows: int, steps: int) -> None:
    assert total_steps(settings(**train), n_rows) == steps


def test_steps_over_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert total_steps(settings(epochs=1, batch_rows=2, accumulation=2), 100) == 7
    assert rows_per_step(settings(batch_rows=2, accumulation=2)) == 16


def test_warmup_is_a_share_of_the_steps(tmp_path: Path) -> None:
    assert sft_arguments(settings(steps=50, warmup_ratio=0.03), tmp_path, 9).warmup_steps == math.ceil(1.5)
    assert sft_arguments(settings(steps=50, warmup_ratio=1), tmp_path, 9).warmup_steps == 50
    assert sft_arguments(settings(steps=50, warmup_steps=0), tmp_path, 9).warmup_steps == 0


def test_no_interval_saves_only_at_the_end(tmp_path: Path) -> None:
    args = sft_arguments(settings(), tmp_path, 10)
    assert (args.save_strategy, args.save_steps) == ("steps", NEVER)


def test_loop_settings(tmp_path: Path) -> None:
    loop = loop_settings(settings(keep_checkpoints=3, on_loss_spike="stop", router_aux_loss_coef=0.1), tmp_path)
    assert loop.checkpoints == tmp_path / "checkpoints"
    assert (loop.keep, loop.on_loss_spike, loop.spike_factor, loop.router_aux_loss_coef) == (3, "stop", 4.0, 0.1)


def test_a_device_that_is_not_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(CounterpointError, match="cuda"):
        sft_arguments(settings(device="cuda"), tmp_path, 10)
