"""Rollouts ahead of the step through the real command line, on a server that samples from the adapters it is given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from json_server import serving
from safetensors.torch import load_file
from sampling_server import SamplingServer

from counterpoint.train.model.embedded import tiny_folder

KILLED_RUN = Path(__file__).parents[1] / "killed_run.py"
RUN = f"""
recipe: grpo
extends: grpo/tiny_sums
model: {{name: '{tiny_folder()}'}}
output: .
lora: {{enabled: true, rank: 4, experts: false}}
rollout: {{engine: server, action_tokens: 10, completion_tokens: 10}}
rewards:
  - {{type: function, function: "reward.py:odd"}}
grpo: {{group: 4}}
train: {{steps: 5, batch_rows: 8, checkpoint_every: 2, learning_rate: 0.02}}
eval: {{at_start: false, at_end: false, samples: 1, max_new_tokens: 2, efforts: low}}
tracking: {{wandb: "off"}}
"""
REWARD = (
    "def odd(completion, reference):\n    return sum(i % 2 for i in completion.ids) / max(1, len(completion.ids))\n"
)


def run(folder: Path, *args: str, kills: str = "") -> int:
    env = {**os.environ, "KILLS": kills, "KILLED": str(folder / "killed"), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(KILLED_RUN.parent), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-P", str(KILLED_RUN), "train", *args], cwd=folder, env=env, capture_output=True, timeout=600
    )
    assert ran.returncode in (0, -signal.SIGKILL), ran.stderr.decode()[-3000:]
    return ran.returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("staleness", "ratio_to", "kills"),
    [
        (0, "current", "sampling:11,journal:3,publish:2,update:2,checkpoint:2,saved:1"),
        # The journal is the rollout process' own. A second death of it beside the first could be the same group's.
        (2, "sampled", "journal:3,publish:2,update:2,checkpoint:2,saved:1"),
    ],
)
def test_a_run_that_is_killed_anywhere_ends_as_if_it_had_not_been(
    tmp_path: Path, staleness: int, ratio_to: str, kills: str
) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "reward.py").write_text(REWARD)
    with serving(SamplingServer()) as server:
        url = f"rollout.server.url={server.url}"
        settings = ("run.yaml", url, f"rollout.staleness={staleness}", f"rollout.ratio_to={ratio_to}")
        assert run(tmp_path, *settings, "name=calm") == 0
        calm = sum("logprobs" in body for body in server.asked)
        code = run(tmp_path, *settings, "name=killed_run", kills=kills)
        (killed,) = tmp_path.glob("killed_run-*")
        deaths = 0
        while code:
            deaths += 1
            assert deaths < 9
            code = run(tmp_path, str(killed / "config.yaml"), "--resume", str(killed), kills=kills)
    (undisturbed,) = tmp_path.glob("calm-*")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(
        kill.partition(":")[0] for kill in kills.split(",")
    )
    assert deaths == (4 if staleness else 6)
    ends = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (undisturbed, killed)]
    assert all(bool((ends[0][name] == tensor).all()) for name, tensor in ends[1].items())
    assert any(bool(tensor.any()) for name, tensor in ends[0].items() if "lora_B" in name)
    rolled = [(folder / "rollouts.jsonl").read_text() for folder in (undisturbed, killed)]
    assert rolled[0] == rolled[1]
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (undisturbed, killed)
    ]
    names = ("step", "loss", "grad_norm", "reward", "clip_ratio/region_mean", "rollouts/age/max")
    # A step whose groups all earned the same computes nothing, and has no ratio.
    curves = [[[line.get(name, 0.0) for name in names] for line in each if "loss" in line] for each in lines]
    assert curves[0] == curves[1]
    assert [line[-1] for line in curves[0]] == [min(step, staleness) for step in range(5)]
    clipped = [line[-2] for line in curves[0]]
    assert any(share > 0 for share in clipped) == bool(staleness), "the ratio to what sampled is not 1"
    assert calm == 5 * 8
    # A death repeats what was in progress, and what was sampled by weights that the last checkpoint does not have.
    repeated = 8 * (staleness + 1) + 8 * 2
    assert sum("logprobs" in body for body in server.asked) <= 2 * calm + repeated * len(kills.split(","))
    assert not list((killed / "journal").iterdir())
