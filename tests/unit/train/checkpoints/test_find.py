"""What a user may name as a checkpoint, and what is found there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.configs.schema import DpoRun, GrpoRun, SftRun, TrainingRun
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.find import find_checkpoint, open_checkpoint
from counterpoint.train.checkpoints.save import checkpoint_name, write_folder
from counterpoint.train.checkpoints.weights import save_weights
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.run.folder import RunFolder

RUN = SftRun.model_validate({"recipe": "sft", "name": "r", "model": {"init": "random"}, "data": {"train": "a.jsonl"}})


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter whose B is not zero, as PEFT saves it."""
    torch.manual_seed(3)
    model = attach_lora(random_tiny().model, LoraSettings(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("saved") / "lora"
    folder.mkdir()
    save_weights(model, folder)
    return folder


def run_folder(parent: Path, run: TrainingRun = RUN) -> Path:
    folder = parent / "run"
    folder.mkdir()
    with RunFolder(folder) as made:
        made.describe(run, {})
    return folder


def put_checkpoint(run: Path, adapter: Path, step: int) -> Path:
    def fill(place: Path) -> None:
        for file in adapter.iterdir():
            (place / file.name).write_bytes(file.read_bytes())

    (run / "checkpoints").mkdir(exist_ok=True)
    return write_folder(run / "checkpoints" / checkpoint_name(step), fill, {"step": step, "identity": {}})


def test_a_run_folder_is_its_result_or_its_newest_whole_checkpoint(tmp_path: Path, adapter: Path) -> None:
    run = run_folder(tmp_path)
    with pytest.raises(ModelError, match="neither a result nor a complete checkpoint"):
        find_checkpoint(str(run))
    first, second = (put_checkpoint(run, adapter, step) for step in (5, 10))
    found = find_checkpoint(str(run))
    assert (found.base, found.adapter, found.run) == (RUN.model, second, RUN)
    (second / "adapter_model.safetensors").write_bytes(b"")
    assert find_checkpoint(str(run)).adapter == first
    assert find_checkpoint(str(first)).run == RUN
    with pytest.raises(ModelError, match="not a complete checkpoint"):
        find_checkpoint(str(second))
    shutil.copytree(adapter, run / "adapter")
    with pytest.raises(ModelError, match=r"adapter: not finished: go on with `counterpoint train --resume"):
        find_checkpoint(str(run))
    shutil.rmtree(run / "adapter")
    write_folder(run / "adapter", lambda place: shutil.copytree(adapter, place, dirs_exist_ok=True), {})
    for name in (run, run / "adapter"):
        assert (find_checkpoint(str(name)).adapter, find_checkpoint(str(name)).run) == (run / "adapter", RUN)


@pytest.mark.parametrize(
    "run",
    [
        DpoRun.model_validate({"recipe": "dpo", "name": "r", "data": {"train": "a.jsonl", "identity": "I."}}),
        GrpoRun.model_validate(
            {
                "recipe": "grpo",
                "name": "r",
                "data": {"train": {"type": "arithmetic"}, "identity": "I.", "date": "none", "effort": "low"},
                "rewards": [{"type": "channel"}],
                "train": {"batch_rows": 8},
            }
        ),
    ],
)
def test_a_run_that_learns_from_pairs_or_rewards_is_known_by_its_settings(
    tmp_path: Path, adapter: Path, run: TrainingRun
) -> None:
    found = find_checkpoint(str(put_checkpoint(run_folder(tmp_path, run), adapter, 5)))
    assert (found.base, found.run) == (run.model, run)
    rendering = run.data
    assert (rendering.identity, rendering.date, rendering.effort) == ("I.", run.data.date, run.data.effort)


def test_an_adapter_says_on_which_base_it_lies(adapter: Path) -> None:
    named = ModelSettings(name="somewhere", dtype="float32")
    assert find_checkpoint(str(adapter), named).base == named
    (adapter / "manifest.json").write_text(json.dumps({"base": "openai/gpt-oss-20b", "base_revision": "abc"}))
    assert find_checkpoint(str(adapter)).base == ModelSettings(name="openai/gpt-oss-20b", revision="abc")
    (adapter / "manifest.json").unlink()
    config = adapter / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "base_model_name_or_path": "base"}))
    assert find_checkpoint(str(adapter)).base.name == "base"
    config.write_text(json.dumps({**values, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match=r"model\.name"):
        find_checkpoint(str(adapter))


def test_models_are_themselves(tmp_path: Path) -> None:
    assert find_checkpoint("tiny").base == ModelSettings()
    hub = find_checkpoint("openai/gpt-oss-20b", ModelSettings(dtype="bfloat16"))
    assert hub.base == ModelSettings(name="openai/gpt-oss-20b", dtype="bfloat16")
    (tmp_path / "merged").mkdir()
    with pytest.raises(ModelError, match=r"neither a run, an adapter nor a model \(no config\.json\)"):
        find_checkpoint(str(tmp_path / "merged"))
    (tmp_path / "merged/config.json").write_text("{}")
    assert find_checkpoint(str(tmp_path / "merged")).base.name == str(tmp_path / "merged")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="a file"):
        find_checkpoint(str(tmp_path / "file"))


def test_an_adapter_changes_what_the_base_says(tmp_path: Path, adapter: Path) -> None:
    run = run_folder(tmp_path)
    put_checkpoint(run, adapter, 1)
    found = find_checkpoint(str(run))
    torch.manual_seed(7)
    loaded = open_checkpoint(found)

    def logits() -> Any:
        with torch.no_grad():
            return loaded.model.eval()(input_ids=torch.arange(9)[None]).logits

    tuned = logits()
    with loaded.model.disable_adapter():
        base = logits()
    assert (tuned - base).abs().max() > 0.01
