"""The two projections of a layer's experts as rounding sees them: what the base has, and what adapters add to it.

Legend: E experts, I inputs, O outputs of a projection, G = I / 32 runs of one scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from peft.tuners.lora import LoraLayer

from counterpoint.train.adapters.attach import DOWN, GATE_UP, REFERENCE, lora_parts
from counterpoint.train.model.mxfp4 import Mxfp4Tensor
from counterpoint.train.model.mxfp4_grid import (
    codes_of,
    dither_key,
    dithered,
    packed,
    quantised,
    raised,
    values_of,
)

PROJECTIONS = {GATE_UP: "gate_up_proj", DOWN: "down_proj"}


class Matrix(NamedTuple):
    """One expert of the base: its numbers float32 (O, I), their codes (O, I) and scales (O, G), nearest to them."""

    value_OI: torch.Tensor
    code_OI: torch.Tensor
    scale_OG: torch.Tensor


@dataclass(frozen=True)
class Projection:
    """weight: the base (E, I, O), plain or in MXFP4. module: PEFT's, None without an adapter."""

    kind: str
    layer: int
    weight: torch.Tensor
    module: Any = None

    @property
    def tensor(self) -> str:
        """Its name in a checkpoint, which the thresholds of dithering depend on."""
        return f"model.layers.{self.layer}.mlp.experts.{PROJECTIONS[self.kind]}"

    @property
    def experts(self) -> int:
        return self.weight.shape[0]

    @torch.no_grad()
    def base(self, expert: int) -> Matrix:
        if isinstance(self.weight, Mxfp4Tensor):
            codes, scales = codes_of(self.weight.blocks[expert]), self.weight.scales[expert]
            return Matrix(values_of(codes, scales), codes, scales)
        value_OI = self.weight[expert].float().T.contiguous()
        return Matrix(value_OI, *quantised(value_OI))

    @torch.no_grad()
    def live(self, expert: int) -> torch.Tensor:
        """Base and change of one expert, float32 (O, I)."""
        if isinstance(self.weight, Mxfp4Tensor):
            base_OI = self.weight.expert(expert, torch.float32).T
        else:
            base_OI = self.weight[expert].float().T
        change_OI = self.change(expert)
        return base_OI if change_OI is None else base_OI + change_OI

    @torch.no_grad()
    def change(self, expert: int) -> torch.Tensor | None:
        """What the active adapters add to one expert, float32 (O, I). In float32 whatever the model computes in, so
        that it is the same number where the adapter is exported on another device."""
        if self.module is None:
            return None
        part, found = self.module, None
        for name in part.active_adapters:
            if name == REFERENCE or name not in part.lora_A:
                continue
            assert not part._did_swap_in_out_features
            a_rI = part.lora_A[name].weight.float().unflatten(0, (self.experts, -1))[expert]
            b_Or = part.lora_B[name].weight.float().unflatten(1, (-1, self.experts))[..., expert]
            change_OI = (b_Or @ a_rI) * float(part.scaling[name])
            found = change_OI if found is None else found + change_OI
        return found

    def dithered(self, expert: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (O, I) and scales (O, G) of base and change, rounded to a neighbour by the hash of the place."""
        base, change_OI = self.base(expert), self.change(expert)
        target_OI = base.value_OI if change_OI is None else base.value_OI + change_OI
        scale_OG = raised(base.scale_OG, target_OI)
        code_OI = dithered(target_OI, scale_OG, dither_key(seed, self.tensor, expert))
        return kept_zeros(code_OI, base.code_OI), scale_OG

    def all_dithered(self, seed: int) -> Mxfp4Tensor:
        """All experts, packed, in the type of the base."""
        parts = [self.dithered(expert, seed) for expert in range(self.experts)]
        blocks = torch.stack([packed(codes).flatten(-2) for codes, _ in parts])
        return Mxfp4Tensor(blocks, torch.stack([scales for _, scales in parts]), self.weight.dtype)


def kept_zeros(code_OI: torch.Tensor, base_OI: torch.Tensor) -> torch.Tensor:
    """The base's negative zeros stay where the number is still zero: what is not changed is equal in all bits."""
    return torch.where((code_OI == 0) & (base_OI == 8), base_OI, code_OI)


def projections(model: Any) -> Iterator[Projection]:
    """Every projection of the experts of a model, with or without adapters, layer by layer."""
    adapted: dict[tuple[str, int], LoraLayer] = {
        (kind, layer): module for kind, layer, module in lora_parts(model) if kind in PROJECTIONS
    }
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer, block in enumerate(cast(Any, inner).model.layers):
        experts = base_experts(block)
        for kind, name in PROJECTIONS.items():
            yield Projection(kind, layer, getattr(experts, name).detach(), adapted.get((kind, layer)))


def base_experts(block: Any) -> Any:
    """transformers' experts of a decoder layer, below PEFT's wrappers."""
    experts = block.mlp.experts
    while hasattr(experts, "base_layer"):
        experts = experts.base_layer
    return experts
