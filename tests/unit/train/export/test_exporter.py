"""An export is the model that was trained, or it is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.data.harmony.vocabulary import CALL, RETURN
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.find import Found, open_checkpoint
from counterpoint.train.checkpoints.weights import save_weights
from counterpoint.train.export import exporter as module
from counterpoint.train.export.exporter import export
from counterpoint.train.export.gate import Ratio, Target
from counterpoint.train.model.load import load_model
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.serving.probes import Serving


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A random tiny base in a folder, and an adapter whose B is not zero."""
    folder = tmp_path_factory.mktemp("export")
    tiny = random_tiny(seed=1)
    tiny.model.save_pretrained(folder / "base")
    tiny.vocabulary_map.save(folder / "base")
    model = attach_lora(tiny.model, LoraSettings(rank=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    (folder / "adapter").mkdir()
    save_weights(model, folder / "adapter")
    return Found("made", ModelSettings(name=str(folder / "base")), folder / "adapter", None)


def test_an_adapter_export_is_the_live_model(found: Found, tmp_path: Path) -> None:
    done = export(found, "adapter", tmp_path / "out")
    assert done.gate.kl == 0.0
    assert done.gate.top1 == 1.0
    assert done.gate.ratio == Ratio(0.0, 0.0, 0.0)
    assert done.gate.kl_base is not None
    assert done.gate.kl_base > 0.1
    files = {path.name for path in done.folder.iterdir()}
    assert files == {
        "adapter_config.json", "adapter_model.safetensors", "manifest.json", "vocabulary_map.json", "complete.json",
        "serving.json", "chat_template.jinja",
    }  # fmt: skip
    serving = Serving.read(done.folder)
    assert len(serving.texts) == 8
    assert all(text.base is not None and text.base != text.tuned for text in serving.texts)
    assert {text.ids[-1] for text in serving.texts} == {CALL, RETURN}
    assert done.launch == "", "no server has the embedded model's vocabulary"
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["system_message"].endswith("<|end|>")
    assert manifest["gate"]["passed"] is True


@pytest.mark.slow
def test_a_merge_in_bf16_stays_within_its_rounding_and_loads_without_peft(found: Found, tmp_path: Path) -> None:
    done = export(found, "bf16", tmp_path / "out", limit=0.05)
    assert 0 < done.gate.kl < 0.05
    config = json.loads((done.folder / "config.json").read_text())
    assert config["architectures"] == ["GptOssForCausalLM"]
    assert "quantization_config" not in config
    again = load_model(ModelSettings(name=str(done.folder)))
    stops = json.loads((done.folder / "generation_config.json").read_text())["eos_token_id"]
    assert sorted(stops) == sorted(again.stop_rows)


@pytest.mark.parametrize("target", ["bf16", "mxfp4"])
def test_generation_settings_start_from_those_of_the_base(found: Found, tmp_path: Path, target: Target) -> None:
    base = tmp_path / "base"
    shutil.copytree(found.base.name, base)
    own = {"bos_token_id": 3, "do_sample": True, "eos_token_id": [7], "pad_token_id": 5, "top_k": 40}
    (base / "generation_config.json").write_text(json.dumps(own))
    config = json.loads((base / "config.json").read_text()) | {"eos_token_id": 7, "pad_token_id": 5}
    (base / "config.json").write_text(json.dumps(config))
    moved = replace(found, base=ModelSettings(name=str(base)))
    done = export(moved, target, tmp_path / "out", limit=50)
    written = json.loads((done.folder / "generation_config.json").read_text())
    stops = load_model(moved.base).stop_rows
    assert written == {**own, "eos_token_id": [7, *stops]}
    config = json.loads((done.folder / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (7, 5)


def test_an_export_that_is_not_the_trained_model_is_refused_with_its_numbers(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_load_again", lambda found, folder, target, device: load_model(found.base))
    with pytest.raises(ModelError, match=r"not the model that was trained: gate refused: R 1\.000"):
        export(found, "adapter", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told(found: Found, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"no folder can be made there \((Not a directory|File exists)\)"):
        export(found, "adapter", tmp_path / "file/out")
    with pytest.raises(ModelError, match="exists already"):
        export(found, "adapter", tmp_path)
    with pytest.raises(ModelError, match="no adapter"):
        export(Found("x", found.base, None, None), "adapter", tmp_path / "out")


def test_scoring_leaves_the_model_as_it_was(found: Found) -> None:
    live = open_checkpoint(found)
    live.model.train()
    module.gate.score(live, module.example_rows(live.vocabulary)[:2])
    assert live.model.training
