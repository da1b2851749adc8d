"""`recipe: dpo` through the real command line on a tiny model: pairs given and built, completions rated one by one,
and a resume bit for bit."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from counterpoint.recipes.cli import main
from counterpoint.train.checkpoints.save import checkpoint_name

SETTINGS = (
    "model.init=random", "output=.", "train.batch_rows=2", "train.log_every=1", "train.warmup_steps=0",
    "train.schedule=constant", "eval.at_start=false", "eval.at_end=false", "tracking.wandb=off",
)  # fmt: skip


def train(*settings: str) -> Path:
    before = set(Path().iterdir())
    assert main(["train", *settings]) == 0
    made = [path for path in Path().iterdir() if path not in before and path.is_dir()]
    return made[0] if made else Path()


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_three_steps_on_built_pairs_and_a_resume_that_is_the_same() -> None:
    run = train("dpo/tiny_format", *SETTINGS, "train.steps=3", "train.checkpoint_every=1")
    first = metrics(run)
    assert [line["step"] for line in first if "loss" in line] == [1, 2, 3]
    assert all("rewards/accuracies" in line for line in first if "loss" in line)
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    assert not any(".ref." in name for name in weights)
    assert (run / "adapter" / "vocabulary_map.json").is_file()

    shutil.rmtree(run / "checkpoints" / checkpoint_name(3))
    shutil.rmtree(run / "adapter")
    assert main(["train", str(run / "config.yaml"), "--resume", str(run)]) == 0
    again = load_file(run / "adapter" / "adapter_model.safetensors")
    assert weights.keys() == again.keys()
    assert all(bool((weights[name] == again[name]).all()) for name in weights)
    timeless = ("loss", "rewards/margins", "logps/chosen")
    assert [[line[key] for key in timeless] for line in metrics(run) if "loss" in line] == [
        [line[key] for key in timeless] for line in first if "loss" in line
    ]


@pytest.mark.parametrize("lora", ["true", "false"])
def test_before_the_first_step_policy_and_reference_are_the_same(tmp_path: Path, lora: str) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": str(n), "rejected": str(n + 1)} for n in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        "extends: dpo/tiny_format\nrecipe: dpo\ndata: {train: pairs.jsonl}\ndpo: {losses: sigmoid, negatives: []}\n"
    )
    run = train("run.yaml", *SETTINGS, "train.steps=2", f"lora.enabled={lora}", "dpo.loss_on=final")
    first, second = (line for line in metrics(run) if "loss" in line)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert second["rewards/margins"] != 0


def test_rated_completions_take_three_steps_and_a_resume_is_the_same() -> None:
    run = train("dpo/tiny_rated", *SETTINGS, "train.batch_rows=8", "train.steps=3", "train.checkpoint_every=1")
    first = [line for line in metrics(run) if "loss" in line]
    assert [line["step"] for line in first] == [1, 2, 3]
    # Before the first step policy and reference are the same, so each row loses a half.
    assert first[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert first[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert all("rewards/margins" in line for line in first), "a batch of one kind"
    assert first[2]["rewards/margins"] != 0
    assert "wanted" in (run / "log.txt").read_text()
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    assert not any(".ref." in name for name in weights)

    shutil.rmtree(run / "checkpoints" / checkpoint_name(3))
    shutil.rmtree(run / "adapter")
    assert main(["train", str(run / "config.yaml"), "--resume", str(run)]) == 0
    again = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(bool((weights[name] == again[name]).all()) for name in weights)


@pytest.mark.slow
def test_calls_on_the_analysis_channel_are_repaired() -> None:
    """The tutorial's two runs, the first of them at 200 steps in place of 500."""
    short = ("eval.samples=4", "eval.tasks=[]", "tracking.wandb=off", "output=.")
    spoiled = train("sft/tiny_spoiled", *short, "train.steps=200", "eval.at_start=false")
    run = train("dpo/tiny_format", *short, f"model.name={spoiled / 'model'}")
    before, after = (
        sum(
            any(violation["code"] == "function_not_on_commentary" for violation in json.loads(line)["violations"])
            for line in path.read_text().splitlines()
        )
        for path in sorted((run / "eval").glob("step-*.jsonl"))
    )
    assert before > 0.15 * 384
    assert after < 0.01 * 384


def test_kto_needs_rows_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dpo/tiny_rated", "train.batch_rows=1"]) == 2
    assert "set `train.batch_rows` to 2 or more" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["sigmoid", pytest.param("kto", marks=pytest.mark.slow)])
def test_held_out_pairs_are_measured_and_do_not_change_the_run(tmp_path: Path, loss: str) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": str(n), "rejected": str(n + 1)} for n in range(7)]
    for name, part in (("pairs", rows[:4]), ("a", rows[4:]), ("b", [*rows[4:6], {"prompt": 1}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "run.yaml").write_text(
        "extends: dpo/tiny_format\nrecipe: dpo\ndata: {train: pairs.jsonl, bad_rows_limit: 0.5}\n"
        f"dpo: {{losses: {loss}, negatives: []}}\n"
        "eval: {every: 2, samples: 1, max_new_tokens: 2, efforts: low}\n"
    )
    plain = metrics(train("run.yaml", *SETTINGS, "train.steps=3"))
    run = train("run.yaml", *SETTINGS, "train.steps=3", "name=held", "data.valid=[a.jsonl, {path: b.jsonl, name: b}]")
    both = metrics(run)
    held_out = {line["step"]: line for line in both if "valid_loss" in line}
    assert list(held_out) == [2, 3]
    assert "valid_b_loss" in held_out[3]
    if loss == "sigmoid":
        assert 0 <= held_out[3]["valid_accuracy"] <= 1
        assert held_out[3]["valid_margin"] != held_out[2]["valid_margin"]
    timeless = ("loss", "grad_norm", "rewards/chosen", "logps/chosen")
    assert [[line.get(key) for key in timeless] for line in both if "loss" in line] == [
        [line.get(key) for key in timeless] for line in plain if "loss" in line
    ]
    assert len((run / "bad_held_out_rows.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.valid=/nonexistent.jsonl", "/nonexistent.jsonl"),
        ("data.weights.analysis=0.3", "`weights.analysis` is 0.3, and a token of a pair is compared or it is not"),
        ("data.pack_tokens=4096", "unknown key `data.pack_tokens`"),
        ("data.tree=false", "unknown key `data.tree`"),
        ("train.on_loss_spike=stop", "unknown key `train.on_loss_spike`"),
        ("train.spike_factor=2", "unknown key `train.spike_factor`"),
        ("model.loss=reference", "unknown key `model.loss`"),
    ],
)
def test_what_pairs_do_not_have_is_refused(setting: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dpo/tiny_format", *SETTINGS, setting]) != 0
    assert told in capsys.readouterr().err
