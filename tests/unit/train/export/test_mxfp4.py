"""MXFP4 written by an export: the grid is kept bit for bit, other numbers are rounded, and losses reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import GptOssForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.find import Found
from counterpoint.train.checkpoints.weights import save_weights
from counterpoint.train.export.exporter import export
from counterpoint.train.export.mxfp4 import Survival, quantised
from counterpoint.train.model.mxfp4 import FP4_VALUES, unpacked
from counterpoint.train.model.tiny import random_tiny


def rounded(weight: torch.Tensor) -> torch.Tensor:
    blocks, scales = quantised(weight)
    return unpacked(blocks.flatten(-2), scales, torch.float32)


@given(st.integers(0, 2**32 - 1), st.integers(10, 240))
@settings(max_examples=60, deadline=None)
def test_what_lies_on_the_grid_stays(seed: int, power: int) -> None:
    random = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (3, 5, 32), dtype=torch.uint8, generator=random)
    scales = torch.full((3, 5, 2), power, dtype=torch.uint8)
    weight = unpacked(blocks, scales, torch.float32)
    assert torch.equal(rounded(weight), weight)


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_numbers_go_to_the_nearest_of_the_better_power(seed: int, size: float) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 32, generator=random) * size
    found = rounded(weight)
    for row, mine in zip(weight.numpy(), found.numpy(), strict=True):
        exponent = int(np.floor(np.log2(np.abs(row).max()))) - 2
        errors = []
        for power in (exponent, exponent + 1):
            grid = np.array(FP4_VALUES, np.float64) * 2.0**power
            nearest = grid[np.abs(row[:, None] - grid).argmin(1)]
            errors.append(((row - nearest) ** 2).sum())
        assert ((row - mine.astype(np.float64)) ** 2).sum() == pytest.approx(min(errors), rel=1e-4)


def test_zeros_and_odd_widths() -> None:
    assert not rounded(torch.zeros(2, 64)).any()
    with pytest.raises(ModelError, match="runs of 32"):
        quantised(torch.zeros(2, 48))


def test_transformers_reads_the_same_numbers() -> None:
    weight = torch.randn(3, 6, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    blocks, scales = quantised(weight)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert torch.equal(theirs.transpose(1, 2).float(), rounded(weight))


def adapter_of(folder: Path, size: float) -> Found:
    """A tiny base whose experts are on the MXFP4 grid, and an adapter with B of this size."""
    tiny = random_tiny(seed=1)
    with torch.no_grad():
        for name, parameter in tiny.model.named_parameters():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                parameter.copy_(rounded(parameter.transpose(1, 2)).transpose(1, 2))
    tiny.model.save_pretrained(folder / "base")
    tiny.vocabulary_map.save(folder / "base")
    model = attach_lora(tiny.model, LoraSettings(rank=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=size)
    (folder / "adapter").mkdir()
    save_weights(model, folder / "adapter")
    return Found("made", ModelSettings(name=str(folder / "base")), folder / "adapter", None)


def test_a_large_adapter_survives_in_part_and_others_read_the_export(tmp_path: Path) -> None:
    done = export(adapter_of(tmp_path, 0.5), "mxfp4", tmp_path / "out", limit=10.0)
    shares = [note for note in done.notes if "survives" in note]
    assert len(shares) == 2
    assert not any("none of it" in note for note in shares)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    tensors = load_file(done.folder / "model.safetensors")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert tensors[f"{name}_blocks"].shape == (4, 128, 2, 16)
    assert tensors[f"{name}_scales"].shape == (4, 128, 2)
    assert name not in tensors
    theirs = GptOssForCausalLM.from_pretrained(done.folder, quantization_config=Mxfp4Config(dequantize=True))
    weight = theirs.model.layers[0].mlp.experts.gate_up_proj
    packed = unpacked(tensors[f"{name}_blocks"].flatten(-2), tensors[f"{name}_scales"], weight.dtype)
    assert torch.equal(weight, packed.transpose(1, 2))
    assert json.loads((done.folder / "manifest.json").read_text())["notes"] == list(done.notes)
    base = ModelSettings(name=str(done.folder), base="mxfp4")
    again = export(Found("packed", base, None, None), "bf16", tmp_path / "unpacked")
    assert again.gate.kl < 1e-2
    assert "quantization_config" not in json.loads((again.folder / "config.json").read_text())


def test_a_small_adapter_is_told_to_be_lost(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gate refused: KL .*experts.gate_up: .* none of it survives"):
        export(adapter_of(tmp_path, 1e-3), "mxfp4", tmp_path / "out", limit=1e-9)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("left", "told"), [(0.0, "none of it"), (50.0, "50% of it"), (100.0, "100% of it")])
def test_survival_in_words(left: float, told: str) -> None:
    part = Survival("experts.down", base=1e4, change=100.0, error=1.0, left=left)
    assert part.line == (
        f"experts.down: the adapter changes the weights by 10.00% of their norm, {told} survives; "
        "rounding to MXFP4 changes 1.00% of their norm"
    )
