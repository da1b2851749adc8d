"""Rollouts ahead of the step where several processes train, and where several servers sample and one dies."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from ahead_run import REWARD, RUN
from forks import Fork, Forks, wait_for
from json_server import serving
from safetensors.torch import load_file
from sampling_server import SamplingServer

COMMAND = str(Path(__file__).parents[1] / "killed_run.py") + ":command"
PINNED = ("rollout.staleness=2", "rollout.ratio_to=sampled")
FIGURES = ("step", "loss", "grad_norm", "reward", "clip_ratio/region_mean", "rollouts/age/max")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "reward.py").write_text(REWARD)


def group(forks: Forks, folder: Path, processes: int, *args: str, kills: str = "") -> list[int]:
    """Exit codes of the processes of a run."""
    os.environ |= {"KILLS": kills, "KILLED": str(folder / "killed")}
    try:
        started = forks.group(COMMAND, ["train", *args], folder=folder, processes=processes)
        codes = wait_for(started)
        assert kills or codes == [0] * processes, told(started)
        return codes
    finally:
        del os.environ["KILLS"], os.environ["KILLED"]


def told(started: list[Fork]) -> str:
    return "".join(fork.told() for fork in started)


def curve(run: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line.get(name, 0.0) for name in FIGURES] for line in lines if "loss" in line]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_two_processes_with_rollouts_ahead_learn_as_one_and_go_on_after_kills(forks: Forks, tmp_path: Path) -> None:
    kills = "publish:4,update:2,checkpoint:2"
    with serving(SamplingServer()) as server:
        settings = ("run.yaml", f"rollout.server.url={server.url}", *PINNED)
        both = (*settings, "train.batch_rows=4", "launch.processes=2")
        group(forks, tmp_path, 1, *settings, "name=one")
        group(forks, tmp_path, 2, *both, "name=two")
        codes = group(forks, tmp_path, 2, *both, "name=cut", kills=kills)
        (cut,) = tmp_path.glob("cut-*")
        deaths = 0
        while any(codes):
            deaths += 1
            assert deaths < 9
            codes = group(
                forks, tmp_path, 2, str(cut / "config.yaml"), "--resume", str(cut), "launch.processes=2", kills=kills
            )
    assert deaths
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"publish", "update", "checkpoint"}
    (one,), (two,) = tmp_path.glob("one-*"), tmp_path.glob("two-*")
    assert [line[-1] for line in curve(one)] == [0, 1, 2, 2, 2]
    assert any(line[-2] > 0 for line in curve(one)), "the clip acts"
    for ours, theirs in zip(curve(two), curve(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert curve(cut) == curve(two)
    first, second, third = adapter(one), adapter(two), adapter(cut)
    assert max(float(tensor.abs().max()) for name, tensor in first.items() if "lora_B" in name) > 1e-3
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-5)
        assert torch.equal(second[name], third[name])
    for run in (two, cut):
        assert (run / "rollouts.jsonl").read_text() == (one / "rollouts.jsonl").read_text()
        assert not list((run / "journal").iterdir())
