"""counterpoint init: a run file for one's own data that validates, plans and trains, and judges one's own task."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.load import load_run
from counterpoint.configs.schema import SftRun
from counterpoint.recipes import cli

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUICK = ["train.steps=1", "train.batch_rows=2", "eval.at_start=false", "eval.base=false", "eval.max_new_tokens=2"]


def sums(n: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"{i} + 5?"}, {"role": "assistant", "content": str(i + 5)}]}
        for i in range(n)
    ]


def calls(n: int) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    return [
        {
            "messages": [
                {"role": "user", "content": f"Weather on day {i}?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "rain"},
                {"role": "assistant", "content": "It rains.\nTake a coat."},
            ],
            "tools": [WEATHER],
        }
        for i in range(n)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_of_one_s_own_file_is_judged_by_its_own_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("mine.jsonl", [*sums(20), *calls(20)])
    assert cli.main(["init", "mine.jsonl", "--cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("40 rows: 40 good, 0 bad")
    assert "mine.prompts.jsonl: 4 prompts of your own rows" in out
    assert out.splitlines()[-1] == "next     counterpoint train mine.yaml"
    run = load_run("mine.yaml")
    assert isinstance(run, SftRun)
    assert (run.data.valid_share, run.eval.prompts, run.data.max_tokens) == (0.1, "mine.prompts.jsonl", 256)
    prompts = [json.loads(line) for line in Path("mine.prompts.jsonl").read_text().splitlines()]
    for prompt in prompts:
        asked = prompt["messages"][0]["content"]
        if "Weather" in asked:
            assert prompt["calls"] == [{"name": "functions.weather", "arguments": {"city": "Oslo"}}]
            assert prompt["tools"][0]["function"]["name"] == "weather"
        else:
            assert prompt["answer"] == str(int(asked.split()[0]) + 5)
    assert cli.main(["validate", "--config", "mine.yaml"]) == 0
    assert cli.main(["train", "mine.yaml", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "\n4 rows stand in data.train and in the evaluation's prompts alike" in out
    (run_folder,) = (folder / "runs").iterdir()
    samples = [json.loads(line) for line in next(run_folder.glob("eval/step-*.jsonl")).read_text().splitlines()]
    assert {sample["id"] for sample in samples} == {prompt["id"] for prompt in prompts}
    assert all(sample["score"] is not None for sample in samples)


@pytest.mark.parametrize(
    ("flags", "extends", "settings"),
    [
        (["--gpu-memory", "80"], "sft/gpt_oss_20b_lora", {"model.base": "bf16", "launch.processes": 1}),
        (["--gpu-memory", "24"], "sft/gpt_oss_20b_lora", {"model.base": "mxfp4"}),
        (["--gpu-memory", "80", "--gpus", "4"], "sft/gpt_oss_20b_lora_multi_gpu", {"launch.processes": 4}),
    ],
)
def test_the_settings_fit_the_gpus(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], extends: str, settings: dict[str, Any]
) -> None:
    write("mine.jsonl", sums(40))
    assert cli.main(["init", "mine.jsonl", *flags]) == 0
    assert f"\nextends: {extends}\n" in Path("mine.yaml").read_text()
    run: Any = load_run("mine.yaml")
    for name, value in settings.items():
        section, key = name.split(".")
        assert getattr(getattr(run, section), key) == value
    assert run.train.epochs >= 2
    assert "yes, with rows of up to" in capsys.readouterr().out


def test_rows_without_thinking_are_taught_and_judged_at_effort_low(folder: Path) -> None:
    rows = sums(40)
    write("plain.jsonl", rows)
    for row in rows:
        row["messages"][-1]["reasoning_content"] = "Add."
    write("thought.jsonl", rows)
    for name, missing, efforts in (
        ("plain", "effort_low", ("low",)),
        ("thought", "keep", ("low", "medium", "high")),
    ):
        assert cli.main(["init", f"{name}.jsonl", "--cpu", "--out", f"{name}.yaml"]) == 0
        run = load_run(f"{name}.yaml")
        assert isinstance(run, SftRun)
        assert (run.data.missing_thinking, run.eval.efforts) == (missing, efforts)
        assert run.train.steps == 250, "few rows need steps all the same"


def test_a_file_with_bad_rows_trains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("mine.jsonl", [*sums(9), {"messages": 7}])
    assert cli.main(["init", "mine.jsonl", "--cpu"]) == 0
    text = Path("mine.yaml").read_text()
    assert (
        "  # 1 of 10 rows are bad and left out; once they are mended, take this line out\n  bad_rows_limit: 0.1\n"
        in text
    )
    assert cli.main(["train", "mine.yaml", *QUICK, "eval.at_end=false"]) == 0
    capsys.readouterr()


def test_pairs_give_a_run_of_dpo(folder: Path) -> None:
    write("pairs.jsonl", [{"prompt": f"{i} + 1?", "chosen": str(i + 1), "rejected": "no"} for i in range(30)])
    assert cli.main(["init", "pairs.jsonl", "--cpu", "--out", "p.yaml"]) == 0
    run = load_run("p.yaml")
    assert (run.recipe, run.dpo.negatives, run.data.valid_share) == ("dpo", (), 0.1)  # type: ignore[union-attr]
    assert not Path("p.prompts.jsonl").exists()


def test_it_asks_on_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    write("mine.jsonl", sums(12))
    monkeypatch.setattr("sys.stdin", Terminal("lots\n80\n2\n"))
    monkeypatch.setattr("sys.stdout", said := Terminal())
    assert cli.main(["init", "mine.jsonl"]) == 0
    assert "write a number above 0" in said.getvalue()
    assert load_run("mine.yaml").launch.processes == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mine.jsonl"], "on what will it train? Say --gpu-memory GIB"),
        (["mine.jsonl", "--cpu", "--model", "20b"], "20b and 120b need a GPU"),
        (["none.jsonl"], "none.jsonl: no such file or folder"),
        (["broken.jsonl", "--cpu"], "4 of 7 rows are bad, more than data.bad_rows_limit (50%) allows"),
        (
            ["faulty.jsonl", "--cpu", "data.bad_rows_limit=0.1"],
            "1 of 4 rows are bad, more than data.bad_rows_limit (10%)",
        ),
        (["there.jsonl", "--cpu"], "there.yaml is there already"),
        (["mine.jsonl", "--cpu", "--out", "a/b.yaml"], "no folder a: make it first"),
        (["prompts.jsonl", "--cpu"], "no row holds an answer to train"),
        (["mine.jsonl", "--cpu", "--gpus", "2"], "leave one of --cpu and --gpus out"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    write("mine.jsonl", sums(3))
    write("prompts.jsonl", [{"messages": [{"role": "user", "content": "What?"}], "answer": "That"}])
    write("there.jsonl", sums(3))
    write("broken.jsonl", [*sums(3), *[{"messages": 7}] * 4])
    write("faulty.jsonl", [*sums(3), {"messages": 7}])
    Path("there.yaml").touch()
    assert cli.main(["init", *arguments]) in (1, 2)
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert not any(Path(f"{name}.yaml").exists() for name in ("mine", "broken", "faulty"))
    assert not list(folder.glob("*.prompts.jsonl"))
