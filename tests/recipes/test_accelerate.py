"""The same run file under `accelerate launch` as under our own launcher: equal numbers, one run folder, written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROW = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}
RUN_FILE = """
recipe: sft
model: {name: tiny}
lora: {rank: 2, alpha: 4}
data: {train: rows.jsonl, max_tokens: 512}
train: {steps: 3, batch_rows: 2, learning_rate: 1e-3, log_every: 1, device: cpu, threads: 1}
eval: {every: 3, prompts: "example:sums_eval", samples: 1, max_new_tokens: 4}
tracking: {wandb: "off"}
launch: {processes: 2}
"""
OURS = ["-m", "counterpoint.recipes.cli"]
ACCELERATE = [
    *(
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ),
    *("-m", "counterpoint.recipes.cli"),
]


def trained(folder: Path, launcher: list[str]) -> Path:
    """The run folder of `RUN_FILE`, the only one that was made."""
    folder.mkdir()
    (folder / "my.yaml").write_text(RUN_FILE)
    (folder / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 16)
    # Where accelerate would look for somebody's own settings.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
    result = subprocess.run(
        [sys.executable, *launcher, "train", "my.yaml"], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("channel-correct: ") == 1, result.stdout
    [run] = (folder / "runs").iterdir()
    return run


def timeless(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k and "time" not in k} for line in lines]


@pytest.mark.slow
def test_accelerate_launch_trains_as_our_launcher_does(tmp_path: Path) -> None:
    ours, theirs = trained(tmp_path / "ours", OURS), trained(tmp_path / "theirs", ACCELERATE)
    files = [sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) for run in (ours, theirs)]
    assert files[0] == files[1]
    metrics = timeless(theirs / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert metrics == timeless(ours / "metrics.jsonl")
    assert timeless(theirs / "eval" / "metrics.jsonl") == timeless(ours / "eval" / "metrics.jsonl")
    assert json.loads((theirs / "run.json").read_text())["state"] == "finished"
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (ours, theirs)]
    assert all(torch.equal(adapters[0][name], tensor) for name, tensor in adapters[1].items())
    assert sum("3 steps" in line for line in (theirs / "log.txt").read_text().splitlines()) == 1
