"""Experts that compute with their rounded merge: values of the rounded weights, gradients of the sum."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import LoraSettings
from counterpoint.train.adapters import expert_math, experts
from counterpoint.train.adapters.attach import attach_lora, load_lora
from counterpoint.train.adapters.experts import use_experts
from counterpoint.train.adapters.projections import projections
from counterpoint.train.adapters.quantization import (
    QUANTIZATION_FILE,
    Quantization,
    round_experts,
    unround_experts,
)
from counterpoint.train.checkpoints.weights import save_weights
from counterpoint.train.export.mxfp4 import How, packed_layer
from counterpoint.train.model.mxfp4 import Mxfp4Tensor, unpacked

IDS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(0))


def adapted(build_gptoss: Any, dtype: torch.dtype = torch.float64) -> Any:
    model = attach_lora(build_gptoss(dtype, initializer_range=0.5, intermediate_size=32), LoraSettings(rank=3))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def straight_through(model: Any) -> Any:
    """The same by autograd: PEFT's own sum, from a base that is the rounded merge less the change of now."""
    reference = copy.deepcopy(model)
    round_experts(model, 7)
    for mine, other in zip(projections(model), projections(reference), strict=True):
        change = other.module.get_delta_weight("default")
        other.weight.copy_(mine.module.rounded.dense() - change.detach())
    use_experts(reference.get_base_model(), lean=False)
    return reference


def passed(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of the adapters and of what enters the first layer."""
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert embedded.grad is not None
    return logits.detach(), {**found, "input": embedded.grad}


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_a_straight_through_reference(build_gptoss: Any, recompute: bool) -> None:
    model = adapted(build_gptoss).train()
    use_experts(model.get_base_model(), lean=True, recompute=recompute)
    plain, _ = passed(model)
    wanted, gradients = passed(straight_through(model).train())
    found, mine = passed(model)
    assert (found - plain).abs().max() > 0.01
    assert torch.allclose(found, wanted, atol=1e-9)
    assert mine.keys() == gradients.keys()
    assert any("experts" in name for name in mine)
    for name, gradient in gradients.items():
        assert (mine[name] - gradient).norm() <= 1e-8 * gradient.norm(), name


def test_the_grouped_form_equals_the_loop(build_gptoss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_experts.py: the grouped GEMMs of a GPU are emulated by a loop."""
    model = adapted(build_gptoss, torch.float32).train()
    use_experts(model.get_base_model(), lean=True)
    round_experts(model, 0)
    wanted, gradients = passed(model)

    def grouped_mm(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        ends = [0, *offs.tolist()]
        spans = list(pairwise(ends))
        if b.dim() == 3:
            return torch.cat([a[i:j] @ b[e] for e, (i, j) in enumerate(spans)])
        return torch.stack([a[:, i:j] @ b[i:j] for i, j in spans])

    monkeypatch.setattr(expert_math.F, "grouped_mm", grouped_mm)
    monkeypatch.setattr(experts, "grouped_serves", lambda *_: True)
    found, mine = passed(model)
    assert torch.allclose(found, wanted, atol=1e-4)
    for name, gradient in gradients.items():
        assert (mine[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_what_is_off_or_another_adapter_is_not_rounded(build_gptoss: Any) -> None:
    model = adapted(build_gptoss).eval()
    use_experts(model.get_base_model(), lean=True)
    with torch.no_grad():
        with model.disable_adapter():
            base = model(IDS).logits
        plain = model(IDS).logits
        round_experts(model, 0)
        rounded = model(IDS).logits
        with model.disable_adapter():
            assert torch.equal(model(IDS).logits, base)
        scales = [part.module.scaling for part in projections(model)]
        kept = [dict(scaling) for scaling in scales]
        for scaling in scales:
            scaling["default"] = 0.0
        off = model(IDS).logits
        for scaling, values in zip(scales, kept, strict=True):
            scaling.update(values)
        unround_experts(model)
        assert torch.equal(model(IDS).logits, plain)
    assert not torch.equal(rounded, plain)
    assert not torch.allclose(off, rounded)


def test_the_export_rounds_as_the_pass_does_on_a_packed_base_too(build_gptoss: Any, tmp_path: Path) -> None:
    """Saved, loaded and exported from float32 or float64: the same bytes."""
    model = adapted(build_gptoss, torch.float32)
    for part in projections(model):
        packed = part.all_dithered(3)
        inner = model.get_base_model().model.layers[part.layer].mlp.experts
        while hasattr(inner, "base_layer"):
            inner = inner.base_layer
        name = part.tensor.rpartition(".")[2]
        setattr(inner, name, torch.nn.Parameter(packed, requires_grad=False))
    use_experts(model.get_base_model(), lean=True)
    round_experts(model, 11)
    save_weights(model, tmp_path)
    again = load_lora(model.unload(), tmp_path)
    for layer in range(2):
        parts = [part for part in projections(again) if part.layer == layer]
        assert all(isinstance(part.weight, Mxfp4Tensor) for part in parts)
        tensors, _ = packed_layer(parts, How("dithered", 11), None)
        other, _ = packed_layer(parts, How("dithered", 12), None)
        for part, trained in zip(parts, [p for p in projections(model) if p.layer == layer], strict=True):
            blocks, scales = tensors[f"{part.tensor}_blocks"], tensors[f"{part.tensor}_scales"]
            mine = part.all_dithered(11)
            assert torch.equal(blocks.flatten(-2), mine.blocks)
            assert torch.equal(unpacked(blocks.flatten(-2), scales, torch.float32).mT, mine.dense())
            assert not torch.equal(other[f"{part.tensor}_blocks"], blocks)
            assert trained.kind == part.kind


def test_how_it_was_trained_is_read_back_or_refused(tmp_path: Path) -> None:
    assert Quantization.of(None) is None
    assert Quantization.of(tmp_path) is None
    Quantization(5).write(tmp_path)
    assert Quantization.of(tmp_path) == Quantization(5, "mxfp4", "dithered")
    (tmp_path / QUANTIZATION_FILE).write_text('{"seed": 1, "format": "nvfp4"}')
    with pytest.raises(ModelError, match="nvfp4, dithered is not known"):
        Quantization.of(tmp_path)
    (tmp_path / QUANTIZATION_FILE).write_text('{"seed"')
    with pytest.raises(ModelError, match="cannot be read"):
        Quantization.of(tmp_path)
