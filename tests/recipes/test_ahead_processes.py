"""Rollouts ahead of the step where several processes train, and where several servers sample and one dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ahead_run import REWARD, RUN
from forks import CLI, Fork, Forks, wait_for
from json_server import serving
from safetensors.torch import load_file
from sampling_server import SamplingServer

COMMAND = str(Path(__file__).parents[1] / "killed_run.py") + ":command"
RECORDING = str(Path(__file__).parents[1] / "sampling_server.py") + ":recording"
# At temperature 1 the embedded model is so sure of itself that most groups earn the same and teach nothing.
PINNED = ("rollout.staleness=2", "rollout.ratio_to=sampled", "rollout.temperature=2")
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


def free_ports(n: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def until(true: Callable[[], Any], run: Fork) -> None:
    end = time.monotonic() + 300
    while not true():
        assert run.poll() is None, run.told()
        assert time.monotonic() < end, f"it never came\n{run.told()}"
        time.sleep(0.02)


def asked(folder: Path, port: int) -> list[tuple[str, ...]]:
    """Requests for rollouts that a server had: version and digest of the adapter, prompt, seed, most tokens."""
    record = folder / f"{port}.jsonl"
    bodies = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    return [
        (*each["model"].split("-")[2:], str(each["prompt"]), str(each["seed"]), str(each["max_tokens"]))
        for each in bodies
    ]


@pytest.mark.slow
def test_a_server_is_killed_and_one_added_and_the_run_learns_as_from_one_server(forks: Forks, tmp_path: Path) -> None:
    """Every group once, the same losses, rollouts and adapter bit for bit: nothing depends on who sampled what."""
    alone, kept, killed, added = free_ports(4)
    urls = {port: f"http://127.0.0.1:{port}/v1" for port in (alone, kept, killed, added)}
    addresses, free, parallel = tmp_path / "addresses.txt", 24, 2  # step 0 is answered before servers wait
    settings = (*PINNED, "rollout.server.chunk_tokens=4", f"rollout.server.parallel={parallel}")
    servers = {alone: forks.start(RECORDING, alone, None, folder=tmp_path)}
    try:
        command = ["train", "run.yaml", *settings]
        calm = forks.start(CLI, [*command, f"rollout.server.url={urls[alone]}", "name=calm"], folder=tmp_path)
        assert calm.wait() == 0, calm.told()
        for port in (kept, killed):
            servers[port] = forks.start(RECORDING, port, free, folder=tmp_path)
        addresses.write_text(f"{urls[kept]}\n{urls[killed]}\n")
        run = forks.start(CLI, [*command, f"rollout.server.url_file={addresses}", "name=fleet"], folder=tmp_path)
        until(lambda: all(len(asked(tmp_path, port)) == free + parallel for port in (kept, killed)), run)
        servers[killed].send(signal.SIGKILL)
        servers[added] = forks.start(RECORDING, added, None, folder=tmp_path)
        addresses.write_text("".join(f"{urls[port]}\n" for port in (kept, killed, added)))
        until(lambda: {version for version, *_ in asked(tmp_path, added)} >= {"0", "1"}, run)
        (tmp_path / "go").touch()
        assert run.wait() == 0, run.told()
    finally:
        for server in servers.values():
            server.send(signal.SIGKILL)
    assert f"server {urls[killed]} is out, " in run.told()
    lost = asked(tmp_path, killed)[free:]
    assert not Counter(lost) - Counter(asked(tmp_path, added)), "they are asked again as they were, of the new one"
    sent = Counter(each for port in (kept, killed, added) for each in asked(tmp_path, port))
    assert sent - Counter(lost) == Counter(asked(tmp_path, alone))
    (undisturbed,), (disturbed,) = tmp_path.glob("calm-*"), tmp_path.glob("fleet-*")
    rollouts = (disturbed / "rollouts.jsonl").read_text()
    assert rollouts == (undisturbed / "rollouts.jsonl").read_text()
    assert len(rollouts.splitlines()) == 5 * 8
    assert curve(disturbed) == curve(undisturbed)
    assert [line[-1] for line in curve(disturbed)] == [0, 1, 2, 2, 2]
    first, second = adapter(undisturbed), adapter(disturbed)
    assert max(float(tensor.abs().max()) for name, tensor in first.items() if "lora_B" in name) > 1e-3
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert not list((disturbed / "journal").iterdir())
