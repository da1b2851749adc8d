"""Whole runs on the lean path against the same runs on the reference: step by step the same losses."""

from __future__ import annotations

import pytest
import torch

from counterpoint.configs.model_section import LoraSettings, SupervisedModelSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.adapters.implementations import use_implementations

LEAN, REFERENCE = (
    SupervisedModelSettings(),
    SupervisedModelSettings(attention="reference", experts="reference", norms="reference", loss="reference"),
)


def run(tiny_run, folder, paths, *, lora=True, dtype=torch.float32, rate=5e-3, checkpointing=False, **options):
    model = tiny_run.tiny_model(lora=False, dtype=dtype)
    if lora:
        torch.manual_seed(1)
        model = attach_lora(model, LoraSettings(rank=4, alpha=8, router=True))
    use_implementations(model, paths, checkpointing == "experts" and paths.experts == "lean")
    if checkpointing is True:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loop = {"lean_loss": paths.loss == "lean", **options.pop("loop", {})}
    trainer = tiny_run.make(folder, model=model, steps=6, log_every=1, rate=rate, loop=loop, **options)
    trainer.train()
    norms = [log["grad_norm"] for log in trainer.curve.logs]
    return [loss for _, loss in trainer.curve.losses], norms, tiny_run.weights_of(trainer)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch": 4, "accumulation": 1},
        {"batch": 1, "accumulation": 4},
        {"checkpointing": True},
        {"checkpointing": "experts"},
        {"loop": {"router_aux_loss_coef": 0.05}},
        {"lora": False, "rate": 1e-3},
    ],
    ids=["plain", "wide", "accumulated", "checkpointed", "recomputed", "router-loss", "full"],
)
def test_trajectories_are_equal(tiny_run, tmp_path, options):
    ours = run(tiny_run, tmp_path / "lean", LEAN, **options)
    theirs = run(tiny_run, tmp_path / "reference", REFERENCE, **options)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4)
    assert theirs[0][-1] != theirs[0][0]


def test_trajectories_in_float64_are_equal_to_the_last_digits(tiny_run, tmp_path):
    ours = run(tiny_run, tmp_path / "lean", LEAN, dtype=torch.float64)
    theirs = run(tiny_run, tmp_path / "reference", REFERENCE, dtype=torch.float64)
    for name, weight in theirs[2].items():
        assert (ours[2][name] - weight).abs().max() <= 1e-6 * weight.abs().max(), name


@pytest.mark.slow
def test_bfloat16_runs_stay_together(tiny_run, tmp_path):
    ours = run(tiny_run, tmp_path / "lean", LEAN, dtype=torch.bfloat16)
    theirs = run(tiny_run, tmp_path / "reference", REFERENCE, dtype=torch.bfloat16)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-2)
