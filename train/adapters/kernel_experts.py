"""Forward and backward of routed experts on kernels of our own: the third form beside those of expert_math.py.

Legend as there. Bias and LoRA are added inside the product, rows are gathered in its load, and weights in MXFP4 are
decoded in it, so that nothing waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch

from counterpoint.train.adapters.expert_math import (
    Adapter,
    ExpertWeights,
    Gradient,
    Routing,
    Saved,
    activated,
    by_expert,
    by_row,
    combine,
    expert_of_rows,
    held,
    padded_a,
    padded_b,
    through_activation,
)
from counterpoint.train.kernels.registry import chosen


def kernels_serve(x_NH: torch.Tensor) -> bool:
    """Whether this form can be used, where `grouped_serves` says that the grouped one can."""
    return chosen("grouped", x_NH) is not None


def kernel_forward(
    x_NH: torch.Tensor, weight_NK: torch.Tensor, routing: Routing, base: ExpertWeights, up: Adapter | None,
    down: Adapter | None,
) -> tuple[torch.Tensor, Saved]:  # fmt: skip
    """Equal to the grouped form; not yet run on a GPU."""
    product = _Product(routing, chosen("grouped", x_NH))
    low_up_Rr = None if up is None else product(x_NH, padded_a(up), gathered=True)
    h_RJ = product(x_NH, base.w1, base.b1, up, low_up_Rr, gathered=True)
    a_RI = activated(h_RJ, base)
    low_down_Rr = None if down is None else product(a_RI, padded_a(down))
    out_RH = product(a_RI, base.w2, base.b2, down, low_down_Rr)
    return combine(out_RH, routing.slot_NK, weight_NK), Saved(h_RJ, low_up_Rr, low_down_Rr)


def kernel_backward(
    dy_NH: torch.Tensor, x_NH: torch.Tensor, weight_NK: torch.Tensor, routing: Routing, base: ExpertWeights,
    up: Adapter | None, down: Adapter | None, saved: Saved, want_x: bool,
) -> Gradient:  # fmt: skip
    product, end_E, row_R = _Product(routing, chosen("grouped", x_NH)), routing.end_E, routing.row_R
    weight_R1 = by_row(weight_NK, routing.slot_NK)[:, None].to(x_NH.dtype)
    dy_RH = dy_NH[row_R]
    dweight_R = (dy_RH * base.b2[expert_of_rows(routing)]).sum(-1)
    da_up = db_up = da_down = db_down = low_dy_Rr = None
    if down is not None:
        low_dy_Rr = product.back(dy_RH, padded_b(down))
        db_down = by_expert(held(saved.low_down_Rr) * (weight_R1 * down.scale), dy_RH, end_E)[:, : down.a.shape[-1]]
    g_RI = product.back(dy_RH, base.w2, down, low_dy_Rr)
    del dy_RH
    h_RJ = saved.hidden_RJ
    if h_RJ is None:
        h_RJ = product(x_NH, base.w1, base.b1, up, saved.low_up_Rr, gathered=True)
    # What was recomputed has no other user, so its gradient may overwrite it.
    dh_RJ = torch.empty_like(h_RJ) if h_RJ is saved.hidden_RJ else h_RJ
    a_RI = through_activation(h_RJ, g_RI, weight_R1, base, dh_RJ, dweight_R)
    if down is not None and low_dy_Rr is not None:
        da_down = by_expert(a_RI, low_dy_Rr.mul_(weight_R1 * down.scale), end_E)[..., : down.a.shape[-1]]
    del a_RI, g_RI
    low_dh_Rr = None if up is None else product.back(dh_RJ, padded_b(up))
    dx_RH = product.back(dh_RJ, base.w1, up, low_dh_Rr) if want_x else None
    if up is not None and low_dh_Rr is not None:
        rank = up.a.shape[-1]
        da_up = by_expert(x_NH[row_R], low_dh_Rr.mul_(up.scale), end_E)[..., :rank]
        db_up = by_expert(held(saved.low_up_Rr) * up.scale, dh_RJ, end_E)[:, :rank]
    dx_NH = None if dx_RH is None else combine(dx_RH, routing.slot_NK, None)
    return Gradient(dx_NH, dweight_R[routing.slot_NK].to(weight_NK.dtype), da_up, db_up, da_down, db_down)


class _Product:
    """The grouped GEMM of one call's rows."""

    def __init__(self, routing: Routing, kernel: Any) -> None:
        self.routing, (self.kernel, cut) = routing, kernel
        self.tiles = cut(routing.end_E, routing.row_R.numel())

    def __call__(
        self, x: torch.Tensor, weight_Eio: torch.Tensor, bias_Eo: torch.Tensor | None = None,
        adapter: Adapter | None = None, low_Rr: torch.Tensor | None = None, gathered: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """x W + b + s low B of every row; gathered: x is of tokens."""
        more: dict[str, Any] = {"row_R": self.routing.row_R if gathered else None, "bias_EO": bias_Eo}
        if adapter is not None and not adapter.merged:
            more |= {"low_Rr": held(low_Rr), "factor_ErO": padded_b(adapter), "scale": adapter.scale}
        return self.kernel(x, weight_Eio, self.tiles, **more)

    def back(
        self, d_Ro: torch.Tensor, weight_Eio: torch.Tensor, adapter: Adapter | None = None,
        low_Rr: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """d W^T + s low A^T of every row."""
        more: dict[str, Any] = {"transposed": True}
        if adapter is not None and not adapter.merged:
            more |= {"low_Rr": held(low_Rr), "factor_ErO": padded_a(adapter).mT.contiguous(), "scale": adapter.scale}
        return self.kernel(d_Ro, weight_Eio, self.tiles, **more)
