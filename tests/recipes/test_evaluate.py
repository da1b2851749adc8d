"""`counterpoint evaluate` through the real command line, on a random tiny model with an adapter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    rows = [{"messages": [{"role": "user", "content": f"{n} + 1?"}], "answer": n + 1} for n in range(2)]
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def evaluate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "counterpoint.recipes.cli", "evaluate", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_it_compares_with_the_base_writes_a_report_and_goes_on_where_it_was(folder: Path) -> None:
    arguments = ["adapter", "eval.prompts=prompts.jsonl", *SETTINGS, "--out", "out"]
    first = evaluate(folder, *arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == "channel-correct: 0.00 (base 0.00)"
    report = json.loads((folder / "out/report.json").read_text())
    assert report["tuned"]["n"] == report["base"]["n"] == 4
    page = (folder / "out/report.html").read_text()
    assert "default-src 'none'" in page
    samples = {path: path.read_bytes() for path in (folder / "out").rglob("*.jsonl")}
    assert samples
    again = evaluate(folder, *arguments)
    assert again.returncode == 0
    assert {path: path.read_bytes() for path in samples} == samples
    other = evaluate(folder, *arguments, "seed=1")
    assert other.returncode == 1
    assert "holds an evaluation with" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1


def test_mistakes_are_one_line(folder: Path) -> None:
    nothing = evaluate(folder, "prompts.jsonl")
    assert (nothing.returncode, len(nothing.stderr.strip().splitlines())) == (1, 1)
    assert "a file, not a folder" in nothing.stderr
    recipe = evaluate(folder, "adapter", "--config", "quickstart")
    assert recipe.returncode == 2
    assert "`evaluate` takes one with `recipe: evaluate`" in recipe.stderr
