"""`recipe: grpo` through the real command line on a tiny model: deterministic, resumable, verbatim, with tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from counterpoint.recipes.cli import main
from counterpoint.train.checkpoints.save import checkpoint_name

# A random model that is rewarded by its tokens: something to learn from the first step on.
REWARD = """
def many_high_ids(completion, reference):
    return sum(i % 2 for i in completion.ids) / max(1, len(completion.ids))
"""
RUN = """
recipe: grpo
extends: grpo/tiny_sums
model: {init: random}
output: .
rollout: {action_tokens: 10, completion_tokens: 10}
rewards:
  - {type: function, function: "reward.py:many_high_ids", name: odd}
  - {type: channel, weight: 0.5}
grpo: {group: 4}
train: {steps: 3, batch_rows: 4, accumulation: 2, checkpoint_every: 1}
eval: {at_start: false, at_end: false}
tracking: {wandb: "off"}
"""
TIMELESS = ("loss", "grad_norm", "reward", "rewards/odd/mean", "rewards/odd/zero_variance", "channel_correct")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "run.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)


def train(*settings: str) -> Path:
    before = set(Path().iterdir())
    assert main(["train", "run.yaml", *settings]) == 0
    return next(path for path in Path().iterdir() if path not in before and (path / "metrics.jsonl").is_file())


def curve(run: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line["step"], *(line[key] for key in TIMELESS)] for line in lines if "loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next(run.glob("*/*model.safetensors")))


def test_the_same_seed_gives_the_same_run_and_a_resume_goes_on_alike() -> None:
    first, second, other = train("name=a"), train("name=b"), train("name=c", "seed=1")
    assert curve(first) == curve(second) != curve(other)
    assert [line[0] for line in curve(first)] == [1, 2, 3]
    assert any(line[2] > 0 for line in curve(first)), "no gradient"
    end = weights(first)
    assert all(bool((end[name] == tensor).all()) for name, tensor in weights(second).items())

    rolled = [json.loads(line) for line in (first / "rollouts.jsonl").read_text().splitlines()]
    assert len(rolled) == 3 * 8
    assert [row["id"] for row in rolled[:4]] == [rolled[0]["id"]] * 4

    shutil.rmtree(first / "checkpoints" / checkpoint_name(3))
    shutil.rmtree(first / "model")
    assert main(["train", str(first / "config.yaml"), "--resume", str(first)]) == 0
    assert curve(first) == curve(second)
    assert all(bool((end[name] == tensor).all()) for name, tensor in weights(first).items())


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "cispo"])
def test_loss_variants_with_an_adapter_and_groups_at_each_effort(loss: str) -> None:
    run = train(f"grpo.loss={loss}", "grpo.efforts=[low, high]", "lora.enabled=true", "grpo.beta=0.01", "train.steps=1")
    rolled = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert [row["effort"] for row in rolled[:4]] == [rolled[0]["effort"]] * 4
    assert not any(".ref." in name for name in weights(run))


def test_settings_that_cannot_be_are_told_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run.yaml", "grpo.group=3"]) == 2
    assert "does not hold whole groups of `grpo.group` (3)" in capsys.readouterr().err
    assert main(["train", "run.yaml", "grpo.beta=0.1"]) == 2
    assert main(["train", "run.yaml", "tools.functions=reward.py:missing"]) == 2
    assert "has no attribute 'missing'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["grpo/tiny_calculator", "grpo/tiny_effort"])
def test_the_other_run_files_take_a_step(name: str) -> None:
    small = ("model.init=random", "output=.", "train.steps=1", "train.batch_rows=16", "rollout.action_tokens=6")
    quiet = ("eval.at_start=false", "eval.at_end=false", "tracking.wandb=off")
    assert main(["train", name, *small, *quiet]) == 0
    (run,) = Path().glob("tiny_*")
    rolled = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(rolled) == 16
    if name == "grpo/tiny_calculator":
        assert set(rolled[0]["rewards"]) == {"answer", "calls", "channel"}
