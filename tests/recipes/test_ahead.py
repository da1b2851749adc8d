"""Rollouts ahead of the step through the real command line, on a server that samples from the adapters it is given."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ahead_run import REWARD, RUN
from json_server import serving
from safetensors.torch import load_file
from sampling_server import SamplingServer

from counterpoint.recipes import grpo, grpo_parts
from counterpoint.recipes.cli import main
from counterpoint.train.loop.rollout_process import RolloutProcess

KILLED_RUN = Path(__file__).parents[1] / "killed_run.py"
TIMES = re.compile(r"rollouts/|per_second|time|seconds|memory|flos")


@pytest.mark.slow
def test_without_staleness_threads_and_a_process_of_their_own_are_the_synchronous_loop_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and all other figures that are no times, rollouts, the adapter and the optimizer's moments."""
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    make = grpo.make_pipeline

    def process_of(settings: Any, session: Any, rollouts: Any, engine: Any, *more: Any) -> Any:
        def player(own: Any, share: Any, journal: Any, engine_at: Any) -> RolloutProcess:
            data = grpo.fingerprint(list(own.items), own.renderer)
            return RolloutProcess(grpo_parts.child_parts, (settings, data, engine.folder), own, share, journal)

        monkeypatch.setattr(grpo_parts, "ThreadPlayer", player)
        return make(settings, session, rollouts, engine, *more)

    ways = {"synchronous": lambda *_: None, "threads": make, "process": process_of}
    ends, curves, rolled = [], [], []
    with serving(SamplingServer()) as server:
        for name, way in ways.items():
            monkeypatch.setattr(grpo, "make_pipeline", way)
            settings = (f"rollout.server.url={server.url}", f"name={name}", "grpo.epsilon=0.1", "grpo.oversample=1.5")
            assert main(["train", "run.yaml", *settings]) == 0
            (folder,) = tmp_path.glob(f"{name}-*")
            assert (folder / "journal").is_dir() == (name != "synchronous")
            kept = [*folder.glob("adapter/*.safetensors"), *(folder / "checkpoints").glob("*5/*")]
            ends.append({path.name: path.read_bytes() for path in kept if path.suffix in (".safetensors", ".pt")})
            rolled.append((folder / "rollouts.jsonl").read_text())
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            curves.append([{key: value for key, value in line.items() if not TIMES.search(key)} for line in lines])
    assert len([line for line in curves[0] if "loss" in line]) == 5
    assert any(line.get("grad_norm") for line in curves[0])
    for n in (1, 2):
        assert rolled[n] == rolled[0]
        assert curves[n] == curves[0]
        assert ends[n] == ends[0]
    assert {"adapter_model.safetensors", "optimizer.pt"} <= set(ends[0])


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
