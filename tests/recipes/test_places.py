"""What a command line names and is not there is told before anything slow is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from counterpoint.recipes.cli import main

RUN = "recipe: sft\nmodel: {{name: tiny}}\ndata: {{train: {train}{more}}}\neval: {{prompts: {prompts}}}\n"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart-20261130-101500").mkdir(parents=True)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "runs/quickstart", "--to", "bf16", "--out", "x"], "did you mean runs/quickstart-20261130-101500?"),
        (["evaluate", "runs/zzz"], "give a run, a checkpoint, an adapter or a model"),
        (["evaluate", "tiny", "--base", "./nothing/there"], "./nothing/there: there is no such folder"),
        (["sample", "/no/such/model", "hello"], "/no/such/model: there is no such folder"),
    ],
)
def test_a_checkpoint_that_is_no_folder_is_not_asked_for_on_the_hub(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before: a mistyped run was asked for on Hugging Face, which without a network took a minute of retries."""
    assert message in told(capsys, *arguments)


@pytest.mark.parametrize(
    ("train", "more", "prompts"),
    [
        ("no.jsonl", "", "null"),
        ("example:quickstart", ", valid: no.jsonl", "null"),
        ("example:quickstart", "", "no.jsonl"),
    ],
)
def test_each_file_of_a_run_is_looked_for(
    train: str, more: str, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my.yaml").write_text(RUN.format(train=train, more=more, prompts=prompts))
    assert told(capsys, "train", "my.yaml") == "no.jsonl: no such file or folder: check the path"


def test_the_prompts_of_tasks_are_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text("recipe: evaluate\neval: {tasks: [{type: file, path: no.jsonl}]}\n")
    missing = "no.jsonl: no such file or folder: check the path"
    assert told(capsys, "evaluate", "tiny", "--config", "my.yaml") == missing


def test_a_plan_needs_neither_prompts_nor_a_folder_for_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be made on another machine than the one that trains."""
    Path("my.yaml").write_text(RUN.format(train="example:quickstart", more="", prompts="example:probes"))
    Path("file").write_text("")
    assert told(capsys, "train", "my.yaml", "output=file/runs").startswith("output: ")
    assert main(["plan", "my.yaml", "output=file/runs", "eval.prompts=elsewhere.jsonl"]) == 0


def test_nothing_slow_is_imported_before() -> None:
    Path("my.yaml").write_text(RUN.format(train="example:quickstart", more="", prompts="no.jsonl"))
    lines = [
        "import sys; from counterpoint.recipes.cli import main",
        "codes = [main(['train', 'my.yaml']), main(['evaluate', 'runs/x']), main(['export', 'runs/x', '--to', 'bf16', '--out', 'y'])]",
        "print(codes, sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))",
    ]
    done = subprocess.run([sys.executable, "-P", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[1, 1, 1] []"


def test_a_share_of_the_training_data_is_no_path(capsys: pytest.CaptureFixture[str]) -> None:
    """Before: `data.valid: 10%` was looked for as a file, so that no command line could hold a share out."""
    asked = '{{"messages": [{{"role": "user", "content": "{0}"}}, {{"role": "assistant", "content": "{0}"}}]}}\n'
    Path("rows.jsonl").write_text("".join(map(asked.format, range(20))))
    Path("my.yaml").write_text(RUN.format(train="rows.jsonl", more=", valid: 10%", prompts="null"))
    settings = ["train.steps=1", "eval.at_start=false", "eval.at_end=false", "train.device=cpu", "tracking.wandb=off"]
    assert main(["train", "my.yaml", *settings]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\d of 20 rows \(\d+\.\d%\) are held out by data\.valid: 10% and seed 0", out)
    assert "held-out step 1: valid loss" in out
