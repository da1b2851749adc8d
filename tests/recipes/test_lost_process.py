"""A process of a run dies without a word: the others end too, soon, and say what happened."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from forks import CLI, Forks

from counterpoint.train.checkpoints.resume import newest_complete

RUN_FILE = """
recipe: sft
model: {name: tiny, init: random}
lora: {rank: 2, alpha: 4}
data: {train: rows.jsonl, max_tokens: 512}
train: {steps: 100000, batch_rows: 2, learning_rate: 1e-4, checkpoint_every: 4, log_every: 1, device: cpu, threads: 1}
tracking: {wandb: "off"}
launch: {processes: 2}
eval: {at_start: false}
"""
ROW = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}


@pytest.mark.parametrize("killed", [0, 1])
def test_no_process_waits_for_one_that_was_killed(forks: Forks, tmp_path: Path, killed: int) -> None:
    """Both are started as srun starts them: no launcher looks after them."""
    (tmp_path / "my.yaml").write_text(RUN_FILE)
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 24)
    processes = forks.group(CLI, ["train", "my.yaml"], folder=tmp_path)
    try:
        processes[0].until("\nstep 5/")
        processes[killed].send(signal.SIGKILL)
        survivor = processes[1 - killed]
        assert survivor.wait() == 1, survivor.told()
        told = survivor.err.read_text()
        assert "another process of this run has ended, cannot be reached, or let this one wait" in told
        assert "Traceback" not in told
    finally:
        for process in processes:
            process.send(signal.SIGKILL)
            process.wait()
    (run,) = (tmp_path / "runs").iterdir()
    checkpoint, _ = newest_complete(run)
    assert checkpoint is not None
    assert checkpoint.step >= 4
    if killed == 1:
        assert json.loads((run / "run.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_a_process_that_stands_still_is_waited_for_as_long_as_the_setting_says(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(RUN_FILE)
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 24)
    processes = forks.group(CLI, ["train", "my.yaml", "launch.timeout=6"], folder=tmp_path)
    processes[0].until("\nstep 3/")
    processes[1].send(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert processes[0].wait() == 1, processes[0].told()
        assert time.monotonic() - began < 40
        told = processes[0].err.read_text()
        assert "longer than launch.timeout (6 s)" in told, told
        assert "Traceback" not in told
    finally:
        processes[1].send(signal.SIGKILL)
        processes[1].wait()
