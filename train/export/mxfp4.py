"""A merged model with its experts in MXFP4, in the tensor layout of the released checkpoints, and what of the adapter
is left after rounding.

Legend: E experts, I inputs, O outputs of a projection. Files hold (E, O, I / 32, 16) bytes and (E, O, I / 32) scales.

A base that came from MXFP4 is exactly on the grid, and a small adapter moves no number to the next point of it: most
merges into MXFP4 give the base back. `Survival` measures it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from peft import PeftModel

from counterpoint.configs.errors import ModelError
from counterpoint.train.adapters.attach import DOWN, GATE_UP, lora_parts
from counterpoint.train.adapters.routing import inner_model
from counterpoint.train.model.mxfp4 import RUN, unpacked
from counterpoint.train.model.mxfp4_load import BLOCKS, SCALES

QUANTIZATION = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
PROJECTIONS = {GATE_UP: "gate_up_proj", DOWN: "down_proj"}
NONE_LEFT = 0.01
"""A share of the adapter below which none of it counts as surviving."""
_BETWEEN = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_POWERS = (0, 1)


@dataclass
class Survival:
    """Squared norms over one kind of projection: of the base, of the adapter's change, of the rounding error of their
    sum, and the product of the wanted change with the one that is left."""

    kind: str
    base: float = 0.0
    change: float = 0.0
    error: float = 0.0
    left: float = 0.0

    @property
    def share(self) -> float:
        """How much of the adapter's change is left: 1 all, 0 nothing."""
        return self.left / self.change if self.change else 1.0

    @property
    def line(self) -> str:
        rounding = f"rounding to MXFP4 changes {(self.error / self.base) ** 0.5:.2%} of their norm"
        if not self.change:
            return f"{self.kind}: {rounding}"
        moved = (self.change / self.base) ** 0.5
        left = "none of it" if self.share < NONE_LEFT else f"{self.share:.0%} of it"
        return f"{self.kind}: the adapter changes the weights by {moved:.2%} of their norm, {left} survives; {rounding}"


def quantised(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks (..., O, I / 32, 16) and scales (..., O, I / 32), both uint8, nearest to `weight` (..., O, I).

    Of the two powers of two that can fit a run of 32, the one with the smaller squared error. What is on the grid
    stays bit for bit. ModelError where I is no multiple of 32.
    """
    if weight_OI.shape[-1] % RUN:
        raise ModelError(f"MXFP4 packs runs of {RUN}, and {weight_OI.shape[-1]} inputs are none: use --to bf16")
    runs = weight_OI.float().unflatten(-1, (-1, RUN))
    largest = runs.abs().amax(-1, keepdim=True)
    # frexp is exact where log2 may round: the largest number is in [2^(exponent - 1), 2^exponent).
    lowest = torch.where(largest > 0, torch.frexp(largest).exponent - 3, -127)
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    for power in _POWERS:
        scale = (lowest + power).clamp(-127, 127)
        codes = _codes(torch.ldexp(runs, -scale))
        error = (torch.ldexp(_values(codes), scale) - runs).square().sum(-1, keepdim=True)
        if best is None:
            best = codes, scale, error
            continue
        better = error < best[2]
        best = (
            torch.where(better, codes, best[0]),
            torch.where(better, scale, best[1]),
            torch.minimum(error, best[2]),
        )
    assert best is not None
    codes, scale, _ = best
    return codes[..., 0::2] | (codes[..., 1::2] << 4), (scale.squeeze(-1) + 127).to(torch.uint8)


def _codes(scaled: torch.Tensor) -> torch.Tensor:
    between = torch.tensor(_BETWEEN, device=scaled.device)
    return torch.bucketize(scaled.abs().contiguous(), between).to(torch.uint8) | (scaled < 0).to(torch.uint8) << 3


def _values(codes: torch.Tensor) -> torch.Tensor:
    table = torch.tensor((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), device=codes.device)
    return table[(codes & 7).int()] * (1 - 2 * (codes >> 3).int())


def pack_experts(model: Any) -> tuple[dict[str, torch.Tensor], list[Survival]]:
    """Packed experts of a model with its adapter merged in, by tensor name, one expert at a time; and what survives."""
    survival = {kind: Survival(kind) for kind in PROJECTIONS}
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for kind, layer, base_EIO, delta_EIO in _projections(model):
            blocks, scales = [], []
            for e in range(len(base_EIO)):
                base_OI = base_EIO[e].float().T.contiguous()
                delta_OI = None if delta_EIO is None else delta_EIO[e].float().T.contiguous()
                merged_OI = base_OI if delta_OI is None else base_OI + delta_OI
                packed, scale = quantised(merged_OI)
                _add(survival[kind], base_OI, delta_OI, unpacked(packed.flatten(-2), scale, torch.float32))
                blocks.append(packed)
                scales.append(scale)
            name = f"model.layers.{layer}.mlp.experts.{PROJECTIONS[kind]}"
            tensors[name + BLOCKS], tensors[name + SCALES] = torch.stack(blocks), torch.stack(scales)
    return tensors, list(survival.values())


def _add(into: Survival, base: torch.Tensor, delta: torch.Tensor | None, found: torch.Tensor) -> None:
    into.base += float(base.square().sum(dtype=torch.float64))
    if delta is None:
        into.error += float((found - base).square().sum(dtype=torch.float64))
        return
    into.change += float(delta.square().sum(dtype=torch.float64))
    into.error += float((found - base - delta).square().sum(dtype=torch.float64))
    into.left += float(((found - base) * delta).sum(dtype=torch.float64))


def _projections(model: Any) -> Iterator[tuple[str, int, torch.Tensor, torch.Tensor | None]]:
    """(kind, layer, base (E, I, O), the adapter's change or None) of every projection of experts."""
    adapted: dict[tuple[str, int], Any] = {}
    if isinstance(model, PeftModel):
        adapted = {(kind, layer): module for kind, layer, module in lora_parts(model) if kind in PROJECTIONS}
    layers = inner_model(model).layers
    for layer, block in enumerate(cast(Any, layers)):
        for kind, name in PROJECTIONS.items():
            module = adapted.get((kind, layer))
            if module is None:
                experts = block.mlp.experts
                while hasattr(experts, "base_layer"):
                    experts = experts.base_layer
                yield kind, layer, getattr(experts, name).detach(), None
            else:
                parts = [module.get_delta_weight(adapter) for adapter in module.active_adapters]
                yield kind, layer, module.get_param().detach(), cast(torch.Tensor, sum(parts))


def write_mxfp4(place: Path, model: Any, stop_rows: list[int]) -> list[Survival]:
    """Write weights, config.json and generation_config.json of the merged model into the folder `place`."""
    packed, survival = pack_experts(model)
    merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
    state = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in merged.state_dict().items()
        if name + BLOCKS not in packed
    }  # fmt: skip
    save_torch_state_dict({**state, **packed}, str(place), metadata={"format": "pt"})
    config = {
        **merged.config.to_dict(),
        "architectures": ["GptOssForCausalLM"],
        "dtype": "bfloat16",
        "quantization_config": QUANTIZATION,
    }
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    merged.generation_config.eos_token_id = stop_rows
    merged.generation_config.save_pretrained(str(place))
    return survival
