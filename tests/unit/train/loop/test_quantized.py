"""Quantisation-aware training: when it begins, that it resumes bit for bit, and that the export is what it sampled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.configs.load import load_run
from counterpoint.configs.model_section import ModelSettings
from counterpoint.configs.schema import EvaluateRun
from counterpoint.data.harmony.render import Renderer
from counterpoint.recipes.cli import main
from counterpoint.train.adapters.projections import projections
from counterpoint.train.adapters.quantization import QUANTIZATION_FILE, Quantization
from counterpoint.train.checkpoints.find import find_checkpoint, open_checkpoint
from counterpoint.train.evals.checkpoint_samples import planned
from counterpoint.train.export import files
from counterpoint.train.export.exporter import export
from counterpoint.train.export.gate import score
from counterpoint.train.export.layer_files import LayerFiles
from counterpoint.train.export.mxfp4 import How, write_mxfp4
from counterpoint.train.export.rows import example_rows
from counterpoint.train.loop.quantized import Quantized
from counterpoint.train.model.load import load_model
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.scoring.prompts import load_prompts


def trained(tiny_run: ModuleType, folder: Path, quantized: Quantized | None, resume: str | None = None) -> Any:
    loop = {"quantized": quantized}
    trainer = tiny_run.make(folder, model=tiny_run.lean_model(packed=True), steps=8, every=2, keep=4, loop=loop)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_it_begins_at_its_share_of_the_steps_and_resumes_bit_for_bit(tiny_run: ModuleType, tmp_path: Path) -> None:
    plain = trained(tiny_run, tmp_path / "plain", None)
    whole = trained(tiny_run, tmp_path / "whole", Quantized(0.5, 3))
    assert whole.curve.losses[:4] == plain.curve.losses[:4]
    assert all(a != b for a, b in zip(whole.curve.losses[4:], plain.curve.losses[4:], strict=True))
    for step, written in ((2, False), (4, True), (6, True), (8, True)):
        checkpoint = tmp_path / "whole" / "checkpoints" / f"step-{step:06d}"
        assert (checkpoint / QUANTIZATION_FILE).is_file() == written
    parts = [part for part in projections(whole.base) if part.module is not None]
    assert all(torch.equal(part.module.rounded.blocks, part.all_dithered(3).blocks) for part in parts)
    assert any(not torch.equal(part.module.rounded.blocks, part.all_dithered(4).blocks) for part in parts)
    for step in (2, 6):
        checkpoint = str(tmp_path / "whole" / "checkpoints" / f"step-{step:06d}")
        again = trained(tiny_run, tmp_path / f"again-{step}", Quantized(0.5, 3), checkpoint)
        weights = tiny_run.weights_of(whole)
        assert all(torch.equal(weights[name], tensor) for name, tensor in tiny_run.weights_of(again).items())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The embedded model as an original checkpoint has it: experts in MXFP4, the rest in bf16."""
    tiny = load_model("tiny")
    parts = LayerFiles(tmp_path / "base", {}, 3)
    write_mxfp4(parts, tiny, How("nearest"), lambda _: None)
    parts.finish()
    tiny.vocabulary_map.save(tmp_path / "base")
    return tmp_path / "base"


def run_file(folder: Path, base: Path, recipe: dict[str, Any]) -> Path:
    run = {
        "seed": 4,
        "output": str(folder / "runs"),
        "model": {"name": str(base), "base": "mxfp4"},
        "lora": {"rank": 4, "attention": False},
        "tracking": {"wandb": "off"},
        **recipe,
    }
    run["train"] = {
        "steps": 4, "quantization_aware": "mxfp4", "quantization_from": 0.5, "learning_rate": 1e-2, "device": "cpu",
        "threads": 1, **recipe.get("train", {}),
    }  # fmt: skip
    (folder / "qat.yaml").write_text(json.dumps(run))
    return folder / "qat.yaml"


@pytest.mark.slow
def test_an_export_repeats_the_samples_of_the_last_step_token_for_token(base: Path, tmp_path: Path) -> None:
    prompts = {
        "efforts": ["medium"],
        "base": False,
        "prompts": "example:quickstart_eval",
        "at_start": False,
        "max_new_tokens": 32,
        "temperature": 0,
    }
    recipe = {
        "recipe": "sft", "data": {"train": "example:quickstart", "max_tokens": 512}, "train": {"batch_rows": 4},
        "eval": prompts,
    }  # fmt: skip
    assert main(["train", str(run_file(tmp_path, base, recipe))]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert Quantization.of(run / "adapter") == Quantization(4)
    sampled = [json.loads(line) for line in (run / "eval" / "step-000004-tuned.jsonl").read_text().splitlines()]
    assert len(sampled) == 32
    found = find_checkpoint(str(run))
    done = export(found, "mxfp4", tmp_path / "out", prompts=2)
    assert done.gate.ratio is not None
    assert done.gate.ratio.value < 1e-6
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["quantization"] == {"format": "mxfp4", "rounding": "dithered", "seed": 4}
    again = load_model(ModelSettings(name=str(tmp_path / "out"), base="mxfp4"))
    assert found.run is not None
    asked = load_prompts("example:quickstart_eval", found.run.data)  # type: ignore[arg-type]
    renderer = Renderer(again.vocabulary, found.run.data)
    answers = Sampler(again).sample([renderer.prompt(prompt.conversation) for prompt in asked], 32)
    assert [answer.ids for answer in answers] == [row["ids"] for row in sampled]
    plain = Sampler(load_model(ModelSettings(name=str(base), base="mxfp4")))
    assert [a.ids for a in plain.sample([renderer.prompt(p.conversation) for p in asked], 32)] != [
        answer.ids for answer in answers
    ]
    with pytest.raises(ModelError, match=r"--rounding nearest: .* a dithering of its own"):
        export(found, "mxfp4", tmp_path / "other", rounding="nearest")
    asked_of_vllm = {
        "recipe": "evaluate",
        "checkpoint": str(run),
        "eval": {"engine": "vllm", "tasks": [{"type": "arithmetic", "size": 2}]},
    }
    (tmp_path / "evaluate.yaml").write_text(json.dumps(asked_of_vllm))
    settings = load_run(tmp_path / "evaluate.yaml")
    assert isinstance(settings, EvaluateRun)
    with pytest.raises(ModelError, match="which vLLM does not put beside a base: evaluate what"):
        planned(settings, found, tmp_path / "evaluation").draw(lambda done: None)
    live = open_checkpoint(replace(found, base=found.base.model_copy(update={"base": "bf16"})))
    (tmp_path / "alone").mkdir()
    notes = files.write_adapter(tmp_path / "alone", found, live, [])
    assert any("trained to be merged and rounded" in note for note in notes)
    assert Quantization.of(tmp_path / "alone") == Quantization(4)
    rows = example_rows(live.vocabulary)[:4]
    before = score(live, rows)
    (tmp_path / "bf16").mkdir()
    files.write_merged(tmp_path / "bf16", live)
    live.vocabulary_map.save(tmp_path / "bf16")
    merged = load_model(str(tmp_path / "bf16"))  # on transformers' own attention and experts
    assert torch.allclose(score(merged, rows).log_probs_TV, before.log_probs_TV, atol=1e-4)


def test_rollouts_are_sampled_with_what_is_exported(base: Path, tmp_path: Path) -> None:
    recipe = {
        "recipe": "grpo",
        "data": {"train": [{"type": "file", "path": "example:sums"}]},
        "rollout": {"action_tokens": 16, "completion_tokens": 16},
        "grpo": {"group": 2},
        "rewards": [{"type": "answer", "scorer": "number"}, {"type": "channel"}],
        "train": {
            "steps": 2, "batch_rows": 4, "quantization_from": 0.0, "on_no_learning": "warn",
        },
        "eval": {"at_start": False, "at_end": False},
    }  # fmt: skip
    assert main(["train", str(run_file(tmp_path, base, recipe))]) in (0, 1)
    (run,) = (tmp_path / "runs").iterdir()
    assert Quantization.of(run / "adapter") == Quantization(4)
    assert len((run / "rollouts.jsonl").read_text().splitlines()) == 8
    live = open_checkpoint(str(run))
    assert all(part.module.rounded is not None for part in projections(live.model))
