"""A second stage through the real command: an adapter is trained onward by every recipe, and is its own reference."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from counterpoint.configs.load import load_run
from counterpoint.recipes.cli import main
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import load_model

SFT = """
recipe: sft
model: {name: tiny}
lora: {rank: 2, alpha: 4, expert_rank: 1}
data: {train: rows.jsonl, max_tokens: 512}
train: {steps: 2, batch_rows: 2, learning_rate: 2e-2, schedule: constant, warmup_steps: 0, log_every: 1, device: cpu}
eval: {at_start: false, at_end: false}
tracking: {wandb: "off"}
"""
DPO = """
recipe: dpo
data: {train: pairs.jsonl, max_tokens: 512}
dpo: {losses: sigmoid}
train: {steps: 3, batch_rows: 2, learning_rate: 1e-2, schedule: constant, warmup_steps: 0, log_every: 1, device: cpu,
  checkpoint_every: 2}
eval: {at_start: false, at_end: false}
tracking: {wandb: "off"}
"""


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with an adapter."""
    monkeypatch.chdir(tmp_path)
    turn = {"role": "assistant", "reasoning_content": "add one"}
    rows = [{"messages": [{"role": "user", "content": f"{n} + 1?"}, {**turn, "content": f"{n + 1}"}]} for n in range(8)]
    pairs = [{"prompt": f"What is {n}?", "chosen": str(n), "rejected": str(n + 1)} for n in range(6)]
    for name, lines in (("rows", rows), ("pairs", pairs)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("sft.yaml").write_text(SFT)
    Path("dpo.yaml").write_text(DPO)
    assert main(["train", "sft.yaml"]) == 0
    return newest("sft")


def newest(name: str) -> Path:
    return max(Path("runs").glob(f"{name}-*"), key=lambda path: path.stat().st_ctime_ns)


def steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("key", ["model.adapter", "model.name"])
def test_sft_goes_on_where_it_ended(first: Path, key: str) -> None:
    assert main(["train", "sft.yaml", "name=two", f"{key}={first}", "train.learning_rate=1e-9"]) == 0
    two = newest("two")
    run = load_run(two / "config.yaml")
    assert (run.model.name, run.model.adapter) == ("tiny", str((first / "adapter").resolve()))
    assert (run.lora.rank, run.lora.alpha, run.lora.expert_rank) == (2, 4, 1)
    for name, tensor in adapter(first).items():
        torch.testing.assert_close(adapter(two)[name], tensor, rtol=0, atol=1e-7)
    assert steps(two)[0]["loss"] < steps(first)[0]["loss"]


def test_dpo_has_the_adapter_as_its_reference_and_resumes_the_same(first: Path) -> None:
    assert main(["train", "dpo.yaml", f"model.adapter={first}"]) == 0
    run = newest("dpo")
    whole = steps(run)
    assert whole[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert whole[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert whole[1]["rewards/margins"] != 0
    weights = adapter(run)
    assert weights.keys() == adapter(first).keys()
    assert {path.name for path in (run / "adapter").iterdir() if path.is_dir()} == set()
    # The result is whole: it needs the base alone, not the adapter that it began with.
    assert main(["export", str(run), "--out", "out"]) == 0
    assert all((tensor == weights[name]).all() for name, tensor in load_file("out/adapter_model.safetensors").items())
    assert main(["sample", "out", "Hi", "--max-new-tokens", "1"]) == 0
    shutil.rmtree(run / "checkpoints" / "step-000003")
    shutil.rmtree(run / "adapter")
    assert main(["train", "--resume", str(run)]) == 0
    assert [line["loss"] for line in steps(run)] == [line["loss"] for line in whole]
    assert all((adapter(run)[name] == tensor).all() for name, tensor in weights.items())


@pytest.mark.slow
def test_rated_completions_and_rewards_go_on_from_it_too(first: Path) -> None:
    assert main(["train", "dpo.yaml", "name=kto", f"model.adapter={first}", "dpo.losses=kto"]) == 0
    assert steps(newest("kto"))[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    settings = ("train.steps=1", "train.batch_rows=8", "train.accumulation=1", "grpo.beta=0.5", "grpo.group=4",
                "eval.at_start=false", "eval.at_end=false", "tracking.wandb=off", "rollout.completion_tokens=8",
                "train.on_no_learning=warn", "train.log_every=1", "train.device=cpu")  # fmt: skip
    Path("grpo.yaml").write_text(
        "recipe: grpo\ndata: {train: [{type: arithmetic, size: 8}]}\nrewards: [{type: channel, weight: 1}]\n"
    )
    assert main(["train", "grpo.yaml", f"model.adapter={first}", *settings]) == 0
    assert steps(newest("grpo"))[0]["kl"] == pytest.approx(0, abs=1e-6)
    # A teacher with the same adapter has nothing to say, one without it has.
    for teacher, differs in ((f"adapter: {first}", False), ("name: tiny", True)):
        taught = (f"name=taught{differs}", f"grpo.teacher={{model: {{{teacher}}}}}")
        main(["train", "grpo.yaml", f"model.adapter={first}", *settings, *taught])
        assert (abs(steps(newest(f"taught{differs}"))[0]["teacher/reverse_kl"]) > 1e-4) == differs


def test_a_plain_peft_folder_is_trained_onward(first: Path, tmp_path: Path) -> None:
    model = load_model("tiny").model
    plain = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]))
    plain.save_pretrained(str(tmp_path / "plain"))
    Path("bare.yaml").write_text(SFT.replace("lora: {rank: 2, alpha: 4, expert_rank: 1}\n", ""))
    assert main(["train", "bare.yaml", "model.adapter=plain"]) == 0
    run = newest("bare")
    assert adapter(run).keys() == load_file(tmp_path / "plain" / "adapter_model.safetensors").keys()
    assert any((tensor != 0).any() for name, tensor in adapter(run).items() if "lora_B" in name)
    assert load_run(run / "config.yaml").lora.rank == 3


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        (["lora.rank=8"], 2, "lora.rank: 8 is set, and the adapter"),
        (["lora.enabled=false"], 2, "lora.enabled: false trains all weights"),
        (["model.init=random"], 2, "`init: random` draws new weights"),
        (["model.adapter=rows.jsonl"], 1, "rows.jsonl: a file, not a folder"),
        (["model.adapter=nowhere"], 2, "model.adapter: nowhere: no such folder"),
        (["model.adapter=other"], 2, "model.adapter: other holds no adapter, but a model: name it as `model.name`"),
        (["model.adapter=dora"], 1, "it has more than LoRA's two matrices (use_dora)"),
        (["model.name=other"], 1, "made on another base: other has a different model.safetensors"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    first: Path, capsys: pytest.CaptureFixture[str], settings: list[str], code: int, told: str
) -> None:
    shutil.copytree(first / "adapter", "dora")
    config = json.loads(Path("dora/adapter_config.json").read_text()) | {"use_dora": True}
    Path("dora/adapter_config.json").write_text(json.dumps(config))
    Path("dora/complete.json").unlink()
    shutil.copytree(tiny_folder(), "other")
    weights = load_file("other/model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, "other/model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert main(["train", "sft.yaml", "name=no", f"model.adapter={first}", *settings]) == code
    assert told in capsys.readouterr().err
    assert not list(Path("runs").glob("no-*"))


def test_another_adapter_to_begin_with_is_refused_by_a_resume(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(first / "adapter", "copy")
    Path("copy/complete.json").unlink()
    assert main(["train", "dpo.yaml", "model.adapter=copy", "model.name=tiny"]) == 0
    run = newest("dpo")
    shutil.rmtree(run / "checkpoints" / "step-000003")
    changed = {name: tensor * 2 for name, tensor in load_file("copy/adapter_model.safetensors").items()}
    save_file(changed, "copy/adapter_model.safetensors")
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 1
    assert "model.adapter is not the one that the run began with: restore it" in capsys.readouterr().err


def test_a_run_of_all_weights_is_a_name(first: Path) -> None:
    assert main(["train", "sft.yaml", "name=full", "lora.enabled=false"]) == 0
    full = newest("full")
    assert main(["train", "sft.yaml", "name=on", f"model.name={full}", "train.steps=1"]) == 0
    assert load_run(newest("on") / "config.yaml").model.name == str((full / "model").resolve())
    assert steps(newest("on"))[0]["loss"] < steps(full)[0]["loss"]
