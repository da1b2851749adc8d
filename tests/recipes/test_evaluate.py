"""`counterpoint evaluate` through the real command line, on a random tiny model with an adapter."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import CLI, Forks

from counterpoint.configs.model_section import LoraSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.weights import save_weights
from counterpoint.train.model.tiny import random_tiny

SETTINGS = ["eval.samples=1", "eval.max_new_tokens=4", "eval.efforts=[low, high]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("evaluate")
    tiny = random_tiny(seed=1)
    tiny.model.save_pretrained(place / "base")
    tiny.vocabulary_map.save(place / "base")
    torch.manual_seed(0)
    model = attach_lora(tiny.model, LoraSettings(rank=2))
    (place / "adapter").mkdir()
    save_weights(model, place / "adapter")
    config = json.loads((place / "adapter/adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(place / "base")
    (place / "adapter/adapter_config.json").write_text(json.dumps(config))
    for name, size in (("prompts", 2), ("many", 20)):
        rows = [{"messages": [{"role": "user", "content": f"{n} + 1?"}], "answer": n + 1} for n in range(size)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


Evaluate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def evaluate(forks: Forks, folder: Path) -> Evaluate:
    """`counterpoint evaluate ARGUMENTS`, from `folder`."""
    return lambda *arguments: forks.command("evaluate", *arguments, folder=folder)


def samples_in(folder: Path) -> list[bytes]:
    """Whole lines of every samples file, in any order."""
    files = [path for path in folder.glob("*/samples*.jsonl") if path.is_file()]
    return [line for path in files for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def killed_after(forks: Forks, folder: Path, out: str, samples: int, *arguments: str) -> int:
    """SIGKILL once so many samples are on disk, and a moment that nobody chose; samples kept."""
    process = forks.start(CLI, ["evaluate", *arguments, "--out", out], folder=folder)
    while len(samples_in(folder / out)) < samples:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    time.sleep(random.random() * 0.1)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return len(samples_in(folder / out))


def without_times(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


MANY = ["adapter", "eval.prompts=many.jsonl", "eval.samples=2", "eval.max_new_tokens=16", "eval.batch=8"]


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_samples(forks: Forks, evaluate: Evaluate, folder: Path) -> None:
    assert evaluate(*MANY, "--out", "whole").returncode == 0
    kept = killed_after(forks, folder, "killed", 1, *MANY)
    kept = killed_after(forks, folder, "killed", kept + random.randint(1, 60), *MANY, "--processes", "2")
    kept = killed_after(forks, folder, "killed", kept + random.randint(1, 60), *MANY)
    assert 0 < kept < 240
    last = evaluate(*MANY, "--processes", "2", "--out", "killed")
    assert last.returncode == 0, last.stderr
    for side in ("tuned", "base"):
        rows = [without_times(folder / out / side / "samples.jsonl") for out in ("whole", "killed")]
        assert rows[0] == rows[1]
        assert len(rows[0]) == 120
        assert sorted(os.listdir(folder / "killed" / side)) == ["plan.json", "samples.jsonl"]
    verdicts = [json.loads((folder / out / "report.json").read_text())["verdict"] for out in ("whole", "killed")]
    assert verdicts[0] == verdicts[1]


def test_it_compares_with_the_base_writes_a_report_and_goes_on_where_it_was(evaluate: Evaluate, folder: Path) -> None:
    arguments = ["adapter", "eval.prompts=prompts.jsonl", *SETTINGS, "--out", "out"]
    first = evaluate(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == "channel-correct: 0.00 (base 0.00)"
    report = json.loads((folder / "out/report.json").read_text())
    assert report["tuned"]["n"] == report["base"]["n"] == 4
    page = (folder / "out/report.html").read_text()
    assert "default-src 'none'" in page
    samples = {path: path.read_bytes() for path in (folder / "out").rglob("*.jsonl")}
    assert samples
    again = evaluate(*arguments)
    assert again.returncode == 0
    assert {path: path.read_bytes() for path in samples} == samples
    other = evaluate(*arguments, "seed=1")
    assert other.returncode == 1
    assert "holds an evaluation with" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1


def test_mistakes_are_one_line(evaluate: Evaluate) -> None:
    nothing = evaluate("prompts.jsonl")
    assert (nothing.returncode, len(nothing.stderr.strip().splitlines())) == (1, 1)
    assert "a file, not a folder" in nothing.stderr
    recipe = evaluate("adapter", "--config", "quickstart")
    assert recipe.returncode == 2
    assert "`evaluate` takes one with `recipe: evaluate`" in recipe.stderr


def test_a_quick_look_draws_sixteen_items_once(evaluate: Evaluate, folder: Path) -> None:
    done = evaluate("adapter", "eval.prompts=many.jsonl", "eval.max_new_tokens=4", "eval.samples=3", "--quick")
    assert done.returncode == 0, done.stderr
    place = folder / "adapter" / "evaluation-quick"
    for who in ("tuned", "base"):
        rows = [json.loads(line) for line in samples_in_file(place / who)]
        assert [(row["effort"], row["sample"]) for row in rows] == [("medium", 0)] * 16


def samples_in_file(folder: Path) -> list[str]:
    return [line for path in folder.glob("samples*.jsonl") for line in path.read_text().splitlines()]
