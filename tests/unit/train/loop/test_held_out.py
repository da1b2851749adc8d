from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.data.layout.collate import Collator
from counterpoint.train.loop.held_out import HeldOut, held_out_loss
from counterpoint.train.plan.trial_steps import allocated_peak


def test_held_out_loss(tiny_run: ModuleType, tmp_path: Path) -> None:
    rows = tiny_run.tiny_rows(7, seed=9)
    trainer = tiny_run.make(tmp_path, steps=1)
    got = held_out_loss(trainer, {"": rows})
    batch = Collator()(rows)
    _, nll = trainer.nll(trainer.model, batch, 1.0)
    weights = batch["target_weights"]
    assert got["valid_loss"] == pytest.approx(((nll * weights).sum() / weights.sum()).item(), rel=1e-5)
    finals = batch["target_channels"] == 3
    expected = (nll * weights)[finals].sum() / weights[finals].sum()
    assert got["valid_loss_final"] == pytest.approx(expected.item(), rel=1e-5)
    assert set(got) == {"valid_loss", "valid_loss_analysis", "valid_loss_commentary", "valid_loss_final"}
    assert trainer.model.training


def test_held_out_loss_changes_nothing(tiny_run: ModuleType, tmp_path: Path) -> None:
    curves, seen, rows = [], [], tiny_run.tiny_rows(5, seed=9)
    for on in (False, True):
        trainer = tiny_run.make(tmp_path / str(on), steps=5)
        if on:
            trainer.add_callback(HeldOut(trainer, partial(held_out_loss, trainer, {"": rows}), 2, at_start=True))
        trainer.train()
        curves.append(trainer.curve.logs)
        seen = [log["step"] for log in trainer.state.log_history if "valid_loss" in log]
    assert curves[0] == curves[1]
    assert seen == [0, 2, 4, 5]


def test_each_set_has_its_own_loss_and_all_of_them_one(tiny_run: ModuleType, tmp_path: Path) -> None:
    rows = tiny_run.tiny_rows(7, seed=9)
    trainer = tiny_run.make(tmp_path, steps=1)
    both = held_out_loss(trainer, {"a": rows[:3], "b": rows[3:]})
    whole = held_out_loss(trainer, {"": rows})
    assert {name: both[name] for name in whole} == pytest.approx(whole, rel=1e-6)
    assert both["valid_b_loss"] == pytest.approx(held_out_loss(trainer, {"": rows[3:]})["valid_loss"], rel=1e-6)
    assert {"valid_a_loss", "valid_a_loss_final", "valid_b_loss_analysis"} < set(both)


def test_batches_are_those_of_training(tiny_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_run.make(tmp_path, steps=1, per_device_eval_batch_size=2)
    real, shapes = type(trainer).nll, []

    def nll(self: Any, model: Any, inputs: Any, normaliser: Any) -> Any:
        shapes.append(len(inputs["input_ids"]))
        return real(self, model, inputs, normaliser)

    monkeypatch.setattr(type(trainer), "nll", nll)
    held_out_loss(trainer, {"": tiny_run.tiny_rows(6, seed=9)})
    assert shapes == [2, 2, 1]


def test_a_held_out_pass_keeps_no_hidden_states(tiny_run: ModuleType, tmp_path: Path) -> None:
    """Eight layers more cost no memory; the hidden states of all layers would."""
    rows, peaks = tiny_run.tiny_rows(24, seed=9), []
    for layers in (2, 10):
        changes = {**tiny_run.CONFIG, "num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
        config = GptOssConfig(**changes)
        config._attn_implementation = "eager"
        trainer = tiny_run.make(tmp_path, model=GptOssForCausalLM(config), steps=1, per_device_eval_batch_size=24)
        sets = {"": rows}
        held_out_loss(trainer, sets)
        peaks.append(allocated_peak(partial(held_out_loss, trainer, sets), torch.device("cpu")))
    hidden = 4 * Collator()(rows)["input_ids"].numel() * tiny_run.CONFIG["hidden_size"]
    assert peaks[1] - peaks[0] < 2 * hidden
