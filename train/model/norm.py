"""gpt-oss's RMS norm, holding its input as it is instead of a float32 copy of it.

Legend: N tokens, H hidden. `y = w x r`, `r = 1 / sqrt(mean(x^2) + eps)`, computed in float32 (arXiv 1910.07467).
With `n = x r` and `g = w dy`: `dx = r (g - n mean(g n))`, `dw = sum over the tokens of dy n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers import PreTrainedModel
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

from counterpoint.train.model.precision import on_cuda


class LeanRMSNorm(GptOssRMSNorm):
    """transformers' norm with a backward pass of its own where the input is narrower than float32."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.dtype.itemsize >= 4:
            return cast(torch.Tensor, super().forward(hidden_states))
        return cast(torch.Tensor, _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon))


def use_norms(model: PreTrainedModel, lean: bool) -> None:
    """Choose the norms of a model: the lean ones, or transformers' own.

    transformers lets a class be exchanged only before a model is made, so the modules of this one change theirs:
    parameters and names stay.
    """
    for module in model.modules():
        if isinstance(module, cast(type, GptOssRMSNorm)):
            module.__class__ = LeanRMSNorm if lean else GptOssRMSNorm


class _RmsNorm(torch.autograd.Function):
    """Saves the input, which the residual stream holds anyway, and one number a token."""

    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Any) -> torch.Tensor:
        x_NH, weight_H, eps = inputs
        run = _fused_forward if _fused_serves(x_NH, weight_H) else _plain_forward
        out_NH, scale_N1 = run(x_NH, weight_H, eps)
        cast(Any, ctx).save_for_backward(x_NH, weight_H, scale_N1)
        return out_NH

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        context = cast(Any, ctx)
        x_NH, weight_H, scale_N1 = context.saved_tensors
        run = _fused_backward if _fused_serves(x_NH, weight_H) else _plain_backward
        return (*run(grads[0], x_NH, weight_H, scale_N1, context.needs_input_grad[:2]), None)


def _plain_forward(x_NH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    wide_NH = x_NH.to(torch.float32)
    scale_N1 = torch.rsqrt(wide_NH.pow(2).mean(-1, keepdim=True) + eps)
    return (weight_H * wide_NH.mul_(scale_N1)).to(x_NH.dtype), scale_N1


def _plain_backward(
    grad_NH: torch.Tensor, x_NH: torch.Tensor, weight_H: torch.Tensor, scale_N1: torch.Tensor, wanted: Sequence[bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    norm_NH, wide_NH = x_NH.to(torch.float32).mul_(scale_N1), grad_NH.to(torch.float32)
    d_x_NH = d_weight_H = None
    if wanted[1]:
        d_weight_H = (wide_NH * norm_NH).flatten(0, -2).sum(0).to(weight_H.dtype)
    if wanted[0]:
        inner_NH = wide_NH * weight_H
        mean_N1 = (inner_NH * norm_NH).mean(-1, keepdim=True)
        d_x_NH = inner_NH.addcmul_(norm_NH, mean_N1, value=-1).mul_(scale_N1).to(x_NH.dtype)
    return d_x_NH, d_weight_H


def _fused_serves(x_NH: torch.Tensor, weight_H: torch.Tensor) -> bool:
    """torch's kernel for CUDA, whose result is rounded once, takes both in one type. Not yet run on a GPU."""
    return on_cuda(x_NH) and x_NH.dtype == weight_H.dtype


def _fused_forward(x_NH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.aten._fused_rms_norm(x_NH, list(weight_H.shape), weight_H, eps)


def _fused_backward(
    grad_NH: torch.Tensor, x_NH: torch.Tensor, weight_H: torch.Tensor, scale_N1: torch.Tensor, wanted: Sequence[bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return torch.ops.aten._fused_rms_norm_backward(
        grad_NH.contiguous(), x_NH, list(weight_H.shape), scale_N1, weight_H, list(wanted)
    )
