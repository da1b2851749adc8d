"""MXFP4 written by an export: layer by layer, resumable, what is not changed stays, and losses are refused."""

from __future__ import annotations

import json
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GptOssForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.find import Found, open_checkpoint
from counterpoint.train.checkpoints.weights import save_weights
from counterpoint.train.export import exporter, gate
from counterpoint.train.export import mxfp4 as module
from counterpoint.train.export.exporter import export
from counterpoint.train.export.layer_files import PROGRESS, LayerFiles
from counterpoint.train.export.mxfp4 import How, Survival, write_mxfp4
from counterpoint.train.model.mxfp4 import unpacked
from counterpoint.train.model.mxfp4_grid import packed, quantised, values_of
from counterpoint.train.model.tiny import random_tiny

NAME = "model.layers.0.mlp.experts.gate_up_proj"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def test_transformers_reads_the_same_numbers() -> None:
    weight = torch.randn(3, 6, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, scales = quantised(weight)
    theirs = convert_moe_packed_tensors(packed(codes), scales, dtype=torch.bfloat16)
    assert torch.equal(theirs.transpose(1, 2).float(), values_of(codes, scales))


def adapter_of(folder: Path, size: float) -> Found:
    """A base as an original checkpoint has it, in MXFP4, and an adapter with B of this size."""
    tiny = random_tiny(seed=1)
    files = LayerFiles(folder / "base", {}, 3)
    write_mxfp4(files, tiny, How("nearest"), lambda _: None)
    files.finish()
    tiny.vocabulary_map.save(folder / "base")
    model = attach_lora(tiny.model, LoraSettings(rank=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=size)
    (folder / "adapter").mkdir()
    save_weights(model, folder / "adapter")
    return Found("made", ModelSettings(name=str(folder / "base"), base="mxfp4"), folder / "adapter", None)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return adapter_of(tmp_path_factory.mktemp("light"), 0.02)


@pytest.mark.slow
def test_a_large_adapter_survives_in_part_and_others_read_the_export(tmp_path: Path) -> None:
    done = export(adapter_of(tmp_path, 0.5), "mxfp4", tmp_path / "out", limit=10.0, rounding="nearest", prompts=2)
    shares = [note for note in done.notes if " left" in note]
    assert len(shares) == 2
    assert not any("none of it" in note for note in shares)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    tensors = tensors_of(done.folder)
    assert tensors[f"{NAME}_blocks"].shape == (4, 128, 2, 16)
    assert tensors[f"{NAME}_scales"].shape == (4, 128, 2)
    assert NAME not in tensors
    theirs = GptOssForCausalLM.from_pretrained(done.folder, quantization_config=Mxfp4Config(dequantize=True))
    weight = theirs.model.layers[0].mlp.experts.gate_up_proj
    mine = unpacked(tensors[f"{NAME}_blocks"].flatten(-2), tensors[f"{NAME}_scales"], weight.dtype)
    assert torch.equal(weight, mine.transpose(1, 2))
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["notes"] == list(done.notes)
    assert manifest["quantization"] == {"format": "mxfp4", "rounding": "nearest", "seed": 0}
    assert [part["kind"] for part in manifest["experts"]] == ["experts.gate_up", "experts.down"]
    assert all(part["s_W"] > 0.5 and part["flips"] > 0 for part in manifest["experts"])
    base = ModelSettings(name=str(done.folder), base="mxfp4")
    again = export(Found("packed", base, None, None), "bf16", tmp_path / "unpacked", prompts=1)
    assert again.gate.kl < 1e-2
    assert again.gate.ratio is None
    assert "quantization_config" not in json.loads((again.folder / "config.json").read_text())


@pytest.mark.parametrize("rounding", ["nearest", "dithered", "calibrated"])
def test_without_a_change_all_bytes_stay(light: Found, tmp_path: Path, rounding: Any) -> None:
    """An adapter whose B is zero, on a packed base: blocks, scales, negative zeros."""
    base = tensors_of(Path(light.base.name))
    assert (base[f"{NAME}_blocks"] & 15 == 8).any()
    model = open_checkpoint(replace(light, adapter=None))
    live = model.with_model(attach_lora(model.model, LoraSettings(rank=4)))
    rows = [ids for ids, _ in exporter.example_rows(live.vocabulary)]
    files = LayerFiles(tmp_path / "out", {}, 3)
    survival = write_mxfp4(files, live, How(rounding, 5, rows), lambda _: None)
    written = tensors_of(tmp_path / "out")
    assert written.keys() == base.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in base.items())
    assert [part.experts for part in survival] == [{"unchanged": 8}] * 2
    assert [part.flips for part in survival] == [0, 0]


def test_a_small_adapter_is_lost_by_nearest_rounding_and_refused_however_light_it_is(tmp_path: Path) -> None:
    """A thousandth of the weights: KL to the base is tiny, and none of the change is left."""
    found = adapter_of(tmp_path, 1e-3)
    with pytest.raises(ModelError, match=r"gate refused: R 0\.\d+.*experts.gate_up: .* none of it is left") as refused:
        export(found, "mxfp4", tmp_path / "out", rounding="nearest", prompts=1)
    told = str(refused.value)
    assert float(told.partition("(R_e ")[2].split()[0]) > 0.9
    assert float(told.partition("KL ")[2].split()[0]) < gate.KL_LIMITS["mxfp4"]
    assert "use --rounding calibrated" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_rounding_needs_rows_and_a_target_that_rounds(light: Found, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--rounding belongs to --to mxfp4, and bf16 is written"):
        export(light, "bf16", tmp_path / "out", rounding="dithered")
    with pytest.raises(ModelError, match=r"--rounding calibrated needs the run's rows .its run is not known.: restore"):
        export(light, "mxfp4", tmp_path / "out", rounding="calibrated")
    assert list(tmp_path.iterdir()) == []


def test_dithering_depends_on_the_seed_alone(light: Found, tmp_path: Path) -> None:
    """A killed export that is started with another seed does not go on with the layers of the first."""
    live = open_checkpoint(light)
    wholes = []
    for seed in (0, 0, 1):
        files = LayerFiles(tmp_path / "out", {"seed": seed}, 3)
        write_mxfp4(files, live, How("dithered", seed), lambda _: None)
        wholes.append(tensors_of(tmp_path / "out")[f"{NAME}_blocks"])
    assert torch.equal(wholes[0], wholes[1])
    assert not torch.equal(wholes[0], wholes[2])


@pytest.mark.slow
def test_a_killed_export_goes_on_behind_the_layers_that_are_there(
    light: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "out", tmp_path / ".unfinished.gate-out"
    child = os.fork()
    if not child:
        real = module.packed_layer

        def dying(parts: Any, *rest: Any) -> Any:
            if parts[0].layer == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(parts, *rest)

        module.packed_layer = dying
        export(light, "mxfp4", out, rounding="dithered", prompts=1, limit=10.0)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not out.exists()
    first = work / "model-00001-of-00003.safetensors"
    assert len((work / PROGRESS).read_text().splitlines()) == 2
    written, told = first.stat().st_mtime_ns, []
    with (work / PROGRESS).open("a") as file:
        file.write('{"part": 1, "fi')  # the line that a kill cut
    export(light, "mxfp4", out, rounding="dithered", prompts=1, limit=10.0, say=told.append)
    assert "1 of 2 layers are there already" in told
    assert (out / first.name).stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    files = LayerFiles(tmp_path / "whole", {}, 3)
    write_mxfp4(files, open_checkpoint(light), How("dithered"), lambda _: None)
    assert tensors_of(out).keys() == tensors_of(tmp_path / "whole").keys()
    assert all(torch.equal(tensor, tensors_of(out)[name]) for name, tensor in tensors_of(tmp_path / "whole").items())


def test_a_file_that_cannot_be_written_is_told_and_what_is_there_is_kept(light: Found, tmp_path: Path) -> None:
    """By the limit of a file's size, in a process of its own: the first layer fits, the rest of the model does not."""
    live, work = open_checkpoint(light), tmp_path / "work"
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
        try:
            write_mxfp4(LayerFiles(work, {}, 3), live, How("nearest"), lambda _: None)
        except ModelError as error:
            os._exit(7 if "cannot be written" in str(error) and "goes on behind" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    files = LayerFiles(work, {}, 3)
    assert files.records.keys() == {0, 1}
    write_mxfp4(files, live, How("nearest"), lambda _: None)
    files.finish()
    assert not list(work.glob("*.unfinished"))


def test_a_damaged_layer_of_a_killed_export_is_written_again(light: Found, tmp_path: Path) -> None:
    live = open_checkpoint(light)
    for _ in range(2):
        files = LayerFiles(tmp_path / "work", {"a": 1}, 3)
        assert len(files.records) in (0, 2)
        write_mxfp4(files, live, How("nearest"), lambda _: None)
        name = tmp_path / "work" / files.records[1]["file"]
        digest = files.records[1]["sha256"]
        name.write_bytes(name.read_bytes()[:-1] + b"x")
    assert LayerFiles(tmp_path / "work", {"a": 1}, 3).records.keys() == {0, 2}
    assert digest == files.records[1]["sha256"]
    assert LayerFiles(tmp_path / "work", {"a": 2}, 3).records == {}


@pytest.mark.parametrize(("left", "told"), [(0.0, "none of it is"), (50.0, "50% of it is"), (100.0, "100% of it is")])
def test_survival_in_words(left: float, told: str) -> None:
    part = Survival("experts.down", base=1e4, change=100.0, error=1.0, left=left)
    assert part.line == (
        f"experts.down: the adapter changes the weights by 10.00% of their norm, {told} left; "
        "rounding to MXFP4 changes 1.00% of their norm"
    )
    part.out_change, part.out_left, part.out_error = 4.0, 3.0, 1.0
    assert ", 75% in their outputs;" in part.line
    assert (part.as_dict()["s_H"], part.as_dict()["e_H"]) == (0.75, 0.25)
