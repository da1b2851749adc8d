"""A process of a run dies without a word: the others end too, soon, and say what happened."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from counterpoint.train.checkpoints.resume import newest_complete

RUN_FILE = """
recipe: sft
model: {name: tiny, init: random}
lora: {rank: 2, alpha: 4}
data: {train: rows.jsonl, max_tokens: 512}
train: {steps: 100000, batch_rows: 2, learning_rate: 1e-4, checkpoint_every: 4, log_every: 1, device: cpu, threads: 1}
tracking: {wandb: "off"}
launch: {processes: 2}
"""
ROW = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}


def start(folder: Path, rank: int, port: int) -> subprocess.Popen[str]:
    """One process of two, started as srun starts it: no launcher looks after it."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [str(Path(sys.executable).with_name("counterpoint")), "train", "my.yaml"]
    environment = {**os.environ, **{key: str(value) for key, value in place.items()}, "PYTHONUNBUFFERED": "1"}
    with (folder / f"err{rank}").open("w") as errors:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_no_process_waits_for_one_that_was_killed(tmp_path: Path, killed: int) -> None:
    (tmp_path / "my.yaml").write_text(RUN_FILE)
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 24)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(tmp_path, rank, port) for rank in range(2)]
    try:
        shown = processes[0].stdout
        assert shown is not None
        assert any(line.startswith("step 5/") for line in shown), (tmp_path / "err0").read_text()
        processes[killed].send_signal(signal.SIGKILL)
        survivor = processes[1 - killed]
        survivor.communicate(timeout=200)
        told = (tmp_path / f"err{1 - killed}").read_text()
        assert survivor.returncode == 1, told
        assert "another process of this run has ended or cannot be reached" in told
        assert "Traceback" not in told
    finally:
        for process in processes:
            process.kill()
            process.wait()
    (run,) = (tmp_path / "runs").iterdir()
    checkpoint, _ = newest_complete(run)
    assert checkpoint is not None
    assert checkpoint.step >= 4
    if killed == 1:
        assert json.loads((run / "run.json").read_text())["state"] == "failed"
