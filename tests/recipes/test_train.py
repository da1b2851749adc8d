"""`counterpoint train` through the real command: a run, its folder, and every way in which it can be broken off."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import CLI, Forks
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file

from counterpoint.configs.load import load_run
from counterpoint.recipes.cli import main
from counterpoint.train.checkpoints.resume import newest_complete
from counterpoint.train.checkpoints.save import file_hash
from counterpoint.train.loop.sft_trainer import CounterpointTrainer
from counterpoint.train.model.embedded import tiny_folder

RUN_FILE = """
recipe: sft
model: {name: tiny, init: random}
lora: {rank: 2, alpha: 4}
data: {train: rows.jsonl, max_tokens: 512}
train: {steps: 4, batch_rows: 2, learning_rate: 5e-3, checkpoint_every: 2, log_every: 1, device: cpu, threads: 1}
eval: {prompts: prompts.jsonl, efforts: low, max_new_tokens: 4, every: 2}
tracking: {wandb: "off"}
"""
TIMES = ("tokens_per_second", "trained_tokens_per_second")


def rows(count: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"{n} + 1?"},
                {"role": "assistant", "reasoning_content": "add one", "content": f"{n + 1}"},
            ]
        }
        for n in range(count)
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Train:
    """The command in this process, from a folder of its own; `runs` are the run folders, oldest first."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        (folder / "my.yaml").write_text(RUN_FILE)
        write(folder / "rows.jsonl", rows())
        write(folder / "prompts.jsonl", [{"messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2"}])

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        returned = main(["train", "my.yaml", *arguments])
        out, err = self._capsys.readouterr()
        assert returned == code, out + err
        return out, err

    @property
    def runs(self) -> list[Path]:
        return sorted((self.folder / "runs").iterdir(), key=lambda path: path.stat().st_ctime_ns)

    def metrics(self, run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    monkeypatch.chdir(tmp_path)
    return Train(tmp_path, capsys)


def test_a_run_and_its_folder(train: Train) -> None:
    out, err = train()
    (run,) = train.runs
    assert re.fullmatch(r"my-\d{8}-\d{6}", run.name)
    names = {path.name for path in run.iterdir()}
    assert names == {
        "adapter", "adapter.jsonl", "checkpoints", "config.yaml", "eval", "figures", "lock", "log.txt", "metrics.jsonl",
        "report.html", "report.json", "run.json", "versions.json",
    }  # fmt: skip
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"run folder  runs/{run.name}"
    assert [line.split("  ")[0] for line in lines if line.startswith("step ")] == [f"step {n}/4" for n in range(1, 5)]
    assert f"adapter     runs/{run.name}/adapter" in lines
    assert f"report      runs/{run.name}/report.html" in lines
    assert re.fullmatch(r"channel-correct: \d\.\d\d \(before \d\.\d\d\)", lines[-1])
    assert [line["step"] for line in train.metrics(run)] == [1, 2, 3, 4]
    state = json.loads((run / "run.json").read_text())
    assert (state["state"], state["step"], state["steps"], state["seeds"]) == (
        "finished", 4, 4, {"seed": 0, "data": 0},
    )  # fmt: skip
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-000002", "step-000004"]
    assert load_run(run / "config.yaml") == load_run("my.yaml")
    final = load_file(run / "adapter" / "adapter_model.safetensors")
    last = load_file(run / "checkpoints" / "step-000004" / "adapter_model.safetensors")
    assert all((final[name] == tensor).all() for name, tensor in last.items())
    assert {p.name for p in (run / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "complete.json", "vocabulary_map.json",
    }  # fmt: skip
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_mode & 0o777 == (
        run / "config.yaml"
    ).stat().st_mode & 0o777


def test_the_same_run_twice_has_the_same_bits(train: Train) -> None:
    train("eval.at_start=false", "eval.at_end=false", "eval.every=null")
    train()
    first, second = train.runs
    assert train.metrics(first) == train.metrics(second)
    assert (first / "adapter/adapter_model.safetensors").read_bytes() == (
        second / "adapter/adapter_model.safetensors"
    ).read_bytes()


def test_full_fine_tuning_with_held_out_rows(train: Train) -> None:
    write(train.folder / "valid.jsonl", rows(5))
    out, _ = train("lora.enabled=false", "data.valid=valid.jsonl", "train.optimizer=adamw", "train.accumulation=2")
    (run,) = train.runs
    assert (run / "model" / "model.safetensors").is_file()
    assert (run / "model" / "vocabulary_map.json").is_file()
    assert "(100 %)" in out
    held_out = {line["step"]: line["valid_loss"] for line in train.metrics(run) if "valid_loss" in line}
    assert list(held_out) == [0, 2, 4]
    assert held_out[4] < held_out[0]


def test_held_out_rows_are_read_told_and_set_aside_like_training_rows(train: Train) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 600}, {"role": "assistant", "content": "yes"}]}
    write(train.folder / "a.jsonl", [*rows(3), long])
    write(train.folder / "b.jsonl", [*rows(9), {"messages": 1}])
    sets = "data.valid=[{path: a.jsonl, name: easy}, {path: b.jsonl, name: hard}]"
    out, _ = train(sets, "data.bad_rows_limit=0.2", "eval.every=null", "eval.at_start=false", "eval.at_end=false")
    (run,) = train.runs
    lines = out.splitlines()
    assert "held-out easy: warning: 1 examples are longer than data.max_tokens and were left out" in lines
    assert "held-out hard: warning: 1 of 10 rows were quarantined (" in out
    (bad,) = (json.loads(line) for line in (run / "bad_held_out_rows.jsonl").read_text().splitlines())
    assert "b.jsonl:10" in json.dumps(bad)
    assert f"warning: 1 bad rows were quarantined: see runs/{run.name}/bad_held_out_rows.jsonl" in lines
    (held_out,) = (line for line in train.metrics(run) if "valid_loss" in line)
    assert {"valid_easy_loss", "valid_hard_loss", "valid_hard_loss_final"} < set(held_out)
    assert any(line.startswith("held-out step 4: valid loss ") for line in lines)
    _, err = train(sets, "data.bad_rows_limit=0.05", code=1)
    assert "b.jsonl: 1 of 10 rows are bad, more than data.bad_rows_limit" in err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("data.max_tokens=20",), "all 12 examples are longer than data.max_tokens (20): raise it"),
        (
            ("data.weights={analysis: 0, final: 0, terminators: 0}",),
            "no token of its 12 assistant turns has a loss weight",
        ),
    ],
)
def test_the_right_cause_where_nothing_trains(train: Train, settings: tuple[str, ...], told: str) -> None:
    _, err = train(*settings, code=1)
    assert f"rows.jsonl: {told}" in err


AWAY = (
    "model.init=pretrained", "train.learning_rate=1e-1", "train.schedule=constant", "train.warmup_steps=0",
    "train.steps=6", "train.checkpoint_every=null", "train.keep_checkpoints=1", "eval.every=1", "eval.at_start=false",
    "data.valid={path: 'example:quickstart', rows: 6}",
)  # fmt: skip


def test_the_best_checkpoint_is_the_result(train: Train) -> None:
    """Trained on other rows, the model leaves what it could do: the first step is the best one."""
    out, _ = train(*AWAY, "train.keep_best=valid_loss")
    (run,) = train.runs
    losses = [line["valid_loss"] for line in train.metrics(run) if "valid_loss" in line]
    best = 1 + losses.index(min(losses))
    assert best < 6
    assert f"best        step {best} of 6: valid_loss {min(losses):.4g}" in out.splitlines()
    assert json.loads((run / "adapter/complete.json").read_text())["step"] == best
    assert json.loads((run / "run.json").read_text())["result_step"] == best
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == [f"step-{best:06d}", "step-000006"]
    kept = run / "checkpoints" / names[0] / "adapter_model.safetensors"
    assert (run / "adapter/adapter_model.safetensors").read_bytes() == kept.read_bytes()
    assert {path.name for path in (run / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "complete.json", "vocabulary_map.json",
    }  # fmt: skip
    # Resumed at its end, or from the checkpoint of its best step, the run knows its best step still.
    (run / "adapter/adapter_model.safetensors").write_bytes(b"")
    train(*AWAY, "train.keep_best=valid_loss", "--resume")
    assert (run / "adapter/adapter_model.safetensors").read_bytes() == kept.read_bytes()
    shutil.rmtree(run / "checkpoints" / "step-000006")
    train(*AWAY, "train.keep_best=valid_loss", "train.stop_when={metric: valid_loss, patience: 2}", "--resume")
    assert (run / "adapter/adapter_model.safetensors").read_bytes() == kept.read_bytes()
    assert json.loads((run / "run.json").read_text())["step"] == best + 2


def test_a_run_ends_when_its_figure_no_longer_becomes_better(train: Train) -> None:
    out, _ = train(*AWAY, "train.stop_when={metric: valid_loss, patience: 2}")
    (run,) = train.runs
    losses = [line["valid_loss"] for line in train.metrics(run) if "valid_loss" in line]
    assert len(losses) == 3
    assert min(losses) == losses[0]
    told = f"step 3: valid_loss was not better than {losses[0]:.4g} in 2 measurements: the run ends here"
    assert told in out
    state = json.loads((run / "run.json").read_text())
    assert (state["state"], state["step"], state["result_step"]) == ("finished", 3, 3)
    assert (run / "checkpoints/step-000003/complete.json").is_file()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("train.keep_best=valid_loss",), "`train.keep_best` is `valid_loss`, and this run measures channel_correct"),
        (("train.stop_when={metric: reward}",), "`train.stop_when.metric` is `reward`, and this run measures"),
        (("train.keep_best=channel_correct", "eval.every=null"), "compares steps, and `eval.every` is null: set it"),
    ],
)
def test_a_figure_that_is_never_measured_is_refused(train: Train, settings: tuple[str, ...], told: str) -> None:
    _, err = train(*settings, code=2)
    assert told in err


HOT = (
    "lora.enabled=false", "model.init=pretrained", "train.learning_rate=1e6", "train.warmup_steps=0",
    "train.max_grad_norm=1e9", "train.schedule=constant", "train.steps=12", "eval.at_start=false", "eval.at_end=false",
    "eval.every=null",
)  # fmt: skip


@pytest.mark.parametrize("policy", ["stop", "warn"])
def test_a_run_that_learns_nothing_says_so(train: Train, policy: str) -> None:
    out, err = train(*HOT, f"train.on_no_learning={policy}", "train.no_learning_steps=4", code=1)
    dead = r"(the gradient was 0 in the last \d+ steps at a rate above 0|the loss was that of a guess .* steps)"
    (run,) = train.runs
    if policy == "stop":
        assert re.match(rf"step \d+: {dead}: nothing is learned; lower train.learning_rate", err)
        assert not (run / "model").exists()
    else:
        assert re.search(rf"warning: step \d+: {dead}: nothing is learned", out)
        assert re.match(rf"runs/{run.name}: {dead}: nothing was learned; lower train.learning_rate", err)
        assert (run / "model").exists()
    assert "next  " not in out


def break_off(monkeypatch: pytest.MonkeyPatch, step: int, raised: BaseException) -> None:
    """The run ends in the forward pass of the step after `step`."""
    real = CounterpointTrainer.nll

    def nll(self: Any, model: Any, inputs: Any, normaliser: Any) -> Any:
        if self.state.global_step == step and model.training:
            raise raised
        return real(self, model, inputs, normaliser)

    monkeypatch.setattr(CounterpointTrainer, "nll", nll)


def test_resume_goes_on_bit_for_bit(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    train()
    with monkeypatch.context() as broken:
        break_off(broken, 3, RuntimeError("pulled the plug"))
        with pytest.raises(RuntimeError, match="pulled the plug"):
            main(["train", "my.yaml"])
    whole, run = train.runs
    state = json.loads((run / "run.json").read_text())
    assert (state["state"], state["reason"]) == ("failed", "RuntimeError: pulled the plug")
    assert "pulled the plug" in (run / "log.txt").read_text()
    out, _ = train("--resume")
    assert "4 steps, going on from step 2" in out
    assert train.metrics(run) == train.metrics(whole)
    assert (run / "adapter/adapter_model.safetensors").read_bytes() == (
        whole / "adapter/adapter_model.safetensors"
    ).read_bytes()
    assert len(train.runs) == 2
    # Finished runs may be resumed: nothing is trained again.
    train("--resume", str(run))
    assert train.metrics(run) == train.metrics(whole)
    # The run folder alone, or a checkpoint in it, is enough to name it.
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["train", "train.log_every=2", "--resume", str(run / "checkpoints/step-000004")]) == 0
    assert train.metrics(run) == train.metrics(whole)
    assert main(["train", "--resume", str(train.folder)]) == 2
    assert main(["train"]) == 2


def test_a_signal_saves_and_the_command_it_prints_goes_on(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CounterpointTrainer.training_step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **kwargs)

    with monkeypatch.context() as signalled:
        signalled.setattr(CounterpointTrainer, "training_step", step)
        out, _ = train(code=143)
    (run,) = train.runs
    assert json.loads((run / "run.json").read_text())["state"] == "stopped"
    lines = out.splitlines()
    assert lines[-2] == "stopped after step 3, with a checkpoint; continue with"
    command = lines[-1].split()
    assert command[:2] == ["counterpoint", "train"]
    assert not (run / "adapter").exists()
    assert main(command[1:]) == 0
    train()
    assert train.metrics(run) == train.metrics(train.runs[1])


def test_a_run_of_other_settings_is_refused_unless_meant(train: Train) -> None:
    train("train.steps=2")
    (run,) = train.runs
    before = (run / "config.yaml").read_text()
    _, err = train("train.steps=4", "lora.rank=3", "--resume", code=1)
    assert "the settings changed: lora.rank 2 -> 3; train.steps 2 -> 4" in err
    assert (run / "config.yaml").read_text() == before
    _, err = train("train.steps=4", "lora.rank=3", "--resume", "--overwrite", code=1)
    assert "which --overwrite cannot change: lora.rank 2 -> 3" in err
    assert (run / "config.yaml").read_text() == before
    out, _ = train("train.steps=4", "--resume", "--overwrite")
    assert "warning: resumes with another setting: train.steps 2 -> 4" in out
    assert [line["step"] for line in train.metrics(run)] == [1, 2, 3, 4]
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-000002", "step-000004"]


STEERED = {
    "train.learning_rate=1e-4": ([5e-3, 5e-3, 1e-4, 1e-4], 0.0),
    "train.weight_decay=0.5": ([5e-3] * 4, 0.5),
    "train.schedule=linear": ([5e-3, 5e-3, 2.5e-3, 1.25e-3], 0.0),
    "train.warmup_steps=4": ([5e-3, 5e-3, 2.5e-3, 3.75e-3], 0.0),
}


@pytest.mark.parametrize("setting", STEERED)
def test_a_setting_that_a_resume_may_change_is_in_force(train: Train, setting: str) -> None:
    fixed = ("lora.enabled=false", "train.schedule=constant", "train.warmup_steps=0", "eval.at_end=false")
    train(*fixed, "eval.every=null", "eval.at_start=false")
    (run,) = train.runs
    whole = (run / "model/model.safetensors").read_bytes()
    older = str(run / "checkpoints" / "step-000002")
    train(*fixed, "eval.every=null", "eval.at_start=false", setting, "--resume", older, "--overwrite")
    rates, decay = STEERED[setting]
    assert [line["learning_rate"] for line in train.metrics(run)] == pytest.approx(rates)
    assert (run / "model/model.safetensors").read_bytes() != whole
    groups = torch.load(run / "checkpoints/step-000004/optimizer.pt", weights_only=True)["param_groups"]
    assert [group["weight_decay"] for group in groups] == [decay, 0.0]


def test_a_norm_of_0_clips_no_gradient(train: Train) -> None:
    quiet = ("eval.every=null", "eval.at_start=false", "eval.at_end=false", "train.optimizer=adamw", "train.steps=2")
    for norm in ("0", "1e6", "1e-9"):
        train(*quiet, f"train.max_grad_norm={norm}")
    results = [load_file(run / "adapter/adapter_model.safetensors") for run in train.runs]
    unclipped, loose, tight = results
    assert all((unclipped[name] == loose[name]).all() for name in loose)
    assert any((unclipped[name] != tight[name]).any() for name in tight)


@pytest.mark.slow
def test_a_longer_run_trains_at_the_rates_of_the_longer_schedule(train: Train) -> None:
    train("train.schedule=linear", "train.warmup_steps=0")
    (run,) = train.runs
    train("train.schedule=linear", "train.warmup_steps=0", "train.steps=6", "--resume", "--overwrite")
    rates = [5e-3, 3.75e-3, 2.5e-3, 1.25e-3, 5e-3 * 2 / 6, 5e-3 * 1 / 6]
    assert [line["learning_rate"] for line in train.metrics(run)] == pytest.approx(rates)
    before = (run / "config.yaml").read_text()
    _, err = train("train.schedule=linear", "train.warmup_steps=0", "train.steps=3", "--resume", "--overwrite", code=1)
    assert "step-000006: it is past the last of 3 steps" in err
    assert (run / "config.yaml").read_text() == before


def test_another_base_under_a_run_is_refused_by_resume_and_export(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_folder(), train.folder / "base")
    settings = ("model.name=base", "model.init=pretrained", "eval.every=null", "eval.at_start=false")
    train(*settings, "eval.at_end=false")
    (run,) = train.runs
    pinned = json.loads((run / "run.json").read_text())["base"]
    assert pinned["files"] == {"model.safetensors": file_hash(train.folder / "base" / "model.safetensors")}
    assert main(["export", str(run), "--out", "same"]) == 0
    # The base is found from another folder, by plain PEFT too.
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(train.folder / "base")
    (train.folder / "elsewhere").mkdir()
    monkeypatch.chdir(train.folder / "elsewhere")
    AutoPeftModelForCausalLM.from_pretrained(train.folder / "same")
    assert main(["sample", str(train.folder / "same"), "Hi", "--max-new-tokens", "1"]) == 0
    monkeypatch.chdir(train.folder)

    weights = load_file(train.folder / "base" / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"] += 0.05
    save_file(weights, train.folder / "base" / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(run / "checkpoints" / "step-000004")
    before = (run / "config.yaml").read_text(), train.metrics(run)
    capsys.readouterr()
    _, err = train(*settings, "eval.at_end=false", "--resume", code=1)
    assert "made on another base: base has a different model.safetensors" in err
    assert ((run / "config.yaml").read_text(), train.metrics(run)) == before
    assert main(["export", str(run), "--out", "other"]) == 1
    assert "made on another base: base has a different model.safetensors" in capsys.readouterr().err
    assert not (train.folder / "other").exists()


@pytest.mark.slow
def test_overwrite_starts_anew_in_the_newest_folder(train: Train) -> None:
    train("train.steps=2")
    (run,) = train.runs
    train("lora.rank=3", "--overwrite")
    assert train.runs == [run]
    assert [line["step"] for line in train.metrics(run)] == [1, 2, 3, 4]
    assert load_run(run / "config.yaml").lora.rank == 3  # type: ignore[union-attr]


def test_changed_data_is_refused(train: Train) -> None:
    train("train.steps=2")
    write(train.folder / "rows.jsonl", [*rows()[:-1], *rows(1)])
    _, err = train("train.steps=2", "--resume", code=1)
    assert "the training data changed" in err
    _, err = train("train.steps=2", "--resume", "--overwrite", code=1)
    assert "the training data changed" in err


@pytest.mark.slow
def test_going_back_to_an_older_checkpoint(train: Train) -> None:
    train()
    (run,) = train.runs
    older = str(run / "checkpoints" / "step-000002")
    whole = train.metrics(run)
    _, err = train("--resume", older, code=1)
    assert "step-000004 is newer and would be lost" in err
    train("--resume", older, "--overwrite")
    assert train.metrics(run) == whole


def test_a_broken_checkpoint_is_passed_over_and_said(train: Train) -> None:
    train()
    (run,) = train.runs
    whole = train.metrics(run)
    (run / "checkpoints" / "step-000004" / "optimizer.pt").write_bytes(b"")
    out, _ = train("--resume")
    assert "going on from step 2" in out
    assert "skipped step-000004: optimizer.pt has 0 bytes" in (run / "log.txt").read_text()
    assert train.metrics(run) == whole


def test_nothing_to_resume(train: Train) -> None:
    _, err = train("--resume", code=1)
    assert err.startswith("runs: no run of the name my to resume")
    _, err = train("--resume", "nowhere", code=1)
    assert "nowhere: not a run folder" in err


def test_a_broken_loss_names_the_rows(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CounterpointTrainer.nll

    def nll(self: Any, model: Any, inputs: Any, normaliser: Any) -> Any:
        loss, values = real(self, model, inputs, normaliser)
        if self.state.global_step == 2:
            values = values.index_fill(
                0, (inputs["target_index"] < inputs["input_ids"].shape[1]).nonzero()[:, 0], 1e999
            )
            loss = loss * float("nan")
        return loss, values

    monkeypatch.setattr(CounterpointTrainer, "nll", nll)
    _, err = train(code=1)
    assert re.match(
        r"step 3: the loss is not finite in rows\.jsonl:\d+ \(rows of the step: rows\.jsonl:\d+, rows\.jsonl:\d+\): "
        r"stopped before the weights were changed, the last good checkpoint is runs/my-[-\d]+/checkpoints/step-000002:",
        err,
    )
    (run,) = train.runs
    assert not (run / "adapter").exists()
    assert json.loads((run / "run.json").read_text())["state"] == "failed"


def test_out_of_memory_names_three_settings(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(monkeypatch, 3, torch.OutOfMemoryError("CUDA out of memory"))
    _, err = train(code=1)
    assert "out of memory: lower train.batch_rows=2" in err
    assert "set train.activation_checkpointing=experts or true (now false), then --resume" in err
    assert "data.max_tokens=512" in err
    assert [p.name for p in (train.runs[0] / "checkpoints").iterdir()] == ["step-000002"]


def test_a_threshold_ends_the_run(train: Train) -> None:
    _, err = train("eval.stop_below=0.5", code=1)
    assert "is below eval.stop_below (0.50)" in err
    (run,) = train.runs
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-000002"]
    assert not (run / "adapter").exists()


def test_bad_rows_are_set_aside(train: Train) -> None:
    with (train.folder / "rows.jsonl").open("a") as file:
        file.write('{"messages": [\n')
    out, _ = train("data.bad_rows_limit=0.2", "train.steps=1")
    assert "rows.jsonl:13" in out
    assert len((train.runs[0] / "bad_rows.jsonl").read_text().splitlines()) == 1
    _, err = train("data.bad_rows_limit=0", code=1)
    assert "more than data.bad_rows_limit" in err


def test_a_mistake_leaves_no_run_behind_that_resume_would_take(train: Train) -> None:
    train("train.steps=2")
    (before,) = train.runs
    train("data.train=missing.jsonl", code=1)
    train("eval.prompts=missing.jsonl", code=1)
    assert train.runs == [before]
    train("model.name=missing", code=1)
    assert train.runs == [before]
    had = {path.relative_to(before): path.read_bytes() for path in before.rglob("*") if path.is_file()}
    for mistake in ("data.train=missing.jsonl", "data.train=missing.jsonl", "model.name=missing"):
        train(mistake, "--overwrite", code=1)
    assert {path.relative_to(before): path.read_bytes() for path in before.rglob("*") if path.is_file()} == had
    # Rows that were set aside are kept, and the run that did not begin is not the newest.
    write(train.folder / "bad.jsonl", [{"messages": 1}])
    train("data.train=bad.jsonl", code=1)
    kept = train.runs[-1]
    assert (kept / "bad_rows.jsonl").is_file()
    out, _ = train("train.steps=2", "--resume")
    assert str(before.name) in out
    assert str(kept.name) not in out


def test_no_secret_of_the_environment_is_written(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    monkeypatch.setenv("WANDB_API_KEY", "a1b2c3d4" * 5)
    train("train.steps=1")
    for path in train.runs[0].rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"hf_abcdefgh" not in content, path
            assert b"a1b2c3d4" not in content, path


def test_the_second_process_on_a_folder_is_refused_and_kill_leaves_it_free(train: Train, forks: Forks) -> None:
    command = ["train", "my.yaml", "train.steps=100000", "train.checkpoint_every=3", "eval.every=null"]
    first = forks.start(CLI, command, folder=train.folder)
    while not (train.folder / "runs").is_dir() or not train.runs or newest_complete(train.runs[0])[0] is None:
        assert first.poll() is None, first.told()
        time.sleep(0.05)
    _, err = train("train.steps=100000", "--resume", code=1)
    assert f"another run is using it (pid {first.pid} on " in err
    first.send(signal.SIGKILL)
    first.wait()
    (run,) = train.runs
    whole, _ = newest_complete(run)
    assert whole is not None
    again = forks.start(CLI, [*command, "--resume"], folder=train.folder)
    again.until(f"\nstep {whole.step + 1}/")
    again.send(signal.SIGTERM)
    assert again.wait() == 143, again.told()
    assert "with a checkpoint; continue with" in again.out.read_text()
    assert again.err.read_text() == ""
    assert f"took over the lock of pid {first.pid} on " in (run / "log.txt").read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 3 MB, or None where this machine does not allow to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, check=False
    )
    yield place if mounted.returncode == 0 else None
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(train: Train, small_disk: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint is intact, the partial one gone, and the message says how much is needed and free."""
    if small_disk is None:
        small_disk = train.folder / "disk"
        usage = shutil.disk_usage(small_disk)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=_left(small_disk, 3_000_000)))
    filler = ["train.keep_checkpoints=100", "train.steps=300", "train.checkpoint_every=1", "eval.every=null"]
    _, err = train(f"output={small_disk}", "eval.at_start=false", "eval.at_end=false", *filler, code=1)
    assert re.search(r"step-\d+: the disk is full: \d+\.\d [kM]B are needed, [\d.]+ \w+ are free: free some space", err)
    (run,) = small_disk.iterdir()
    whole, passed_over = newest_complete(run)
    assert whole is not None
    assert passed_over == []
    assert not [p for p in (run / "checkpoints").iterdir() if not p.name.startswith("step-")]


def _left(folder: Path, size: int) -> int:
    return max(size - sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), 0)
