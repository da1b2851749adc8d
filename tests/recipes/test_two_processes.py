"""Recipes over pairs, ratings and rewards: two processes learn what one learns of the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import CLI, Forks, wait_for
from safetensors.torch import load_file

SETTINGS = (
    "model.init=random", "lora.enabled=true", "train.steps=3", "train.device=cpu", "train.log_every=1",
    "train.warmup_steps=0", "train.schedule=constant", "eval.at_start=false", "eval.at_end=false", "tracking.wandb=off",
)  # fmt: skip
REWARD = "def odd(completion, reference):\n    return sum(i % 2 for i in completion.ids) / len(completion.ids)\n"
REWARDS = '[{type: function, function: "reward.py:odd"}]'
SHORT = ("rollout.completion_tokens=10", "rollout.action_tokens=10", f"rewards={REWARDS}")
PROMPTS = "data.train={type: file, path: example:sums, size: 16}"
ROWS = "data.train={path: example:quickstart, rows: 40}"


def run(forks: Forks, config: str, folder: Path, rows: int, processes: int, *settings: str) -> Path:
    """Trains by the real command; the run folder."""
    command = ["train", config, *SETTINGS, *settings, f"train.batch_rows={rows}", f"launch.processes={processes}"]
    group = forks.group(CLI, [*command, f"output={folder.name}"], folder=folder.parent, processes=processes)
    assert wait_for(group) == [0] * processes, "".join(fork.told() for fork in group)
    return next(path.parent for path in folder.glob("*/metrics.jsonl"))


def steps(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("config", "rows", "settings", "keys"),
    [
        # The loss of pairs alone: TRL takes the mean of the `sft` part over each process's own tokens.
        (
            "dpo/tiny_format",
            8,
            ("dpo.losses=sigmoid", "dpo.loss_weights=null", ROWS),
            ("rewards/margins", "logps/chosen"),
        ),
        # Without the estimate of how far the model moved, which pairs rows within a process.
        pytest.param(
            "dpo/tiny_rated",
            8,
            ("dpo.losses=apo_zero_unpaired", ROWS),
            ("rewards/margins", "logps/chosen"),
            marks=pytest.mark.slow,
        ),
        ("grpo/tiny_sums", 32, (*SHORT, PROMPTS), ("reward", "rewards/function/zero_variance", "channel_correct")),
    ],
    ids=["dpo", "kto", "grpo"],
)
def test_two_processes_learn_as_one(
    forks: Forks, tmp_path: Path, config: str, rows: int, settings: tuple[str, ...], keys: tuple[str, ...]
) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    one = run(forks, config, tmp_path / "one", rows, 1, *settings)
    two = run(forks, config, tmp_path / "two", rows // 2, 2, *settings)
    assert len(steps(one)) == len(steps(two)) == 3
    for ours, theirs in zip(steps(two), steps(one), strict=True):
        assert ours["grad_norm"] > 0
        for key in ("loss", "grad_norm", *keys):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), key
    first, second = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (one, two))
    assert max(float(tensor.abs().max()) for name, tensor in first.items() if "lora_B" in name) > 1e-3
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-2, atol=1e-4)
    if config.startswith("grpo"):
        assert (two / "rollouts.jsonl").read_text() == (one / "rollouts.jsonl").read_text()
