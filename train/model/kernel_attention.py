"""Attention with sinks on a kernel of our own (train/kernels/attention.py), for CUDA."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from counterpoint.train.kernels.registry import chosen

HEAD_SIZES = (16, 32, 64, 128)


def kernel_serves(query_BHSD: torch.Tensor) -> bool:
    """Whether the kernel is in use and takes these."""
    narrow = query_BHSD.dtype == torch.bfloat16 and query_BHSD.shape[-1] in HEAD_SIZES
    return narrow and chosen("attention", query_BHSD) is not None


class KernelAttention(torch.autograd.Function):
    """As `_CudaAttention`. It keeps its inputs, the output, and a log-sum-exp for each head and token."""

    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Any) -> torch.Tensor:
        query_BHSD, key_BGSD, value_BGSD, sink_H, plan, scale = inputs
        parts = [part if part.stride(-1) == 1 else part.contiguous() for part in (query_BHSD, key_BGSD, value_BGSD)]
        kernel = chosen("attention", query_BHSD)[0]
        out_BSHD, lse_BHS = kernel(*parts, sink_H, *plan.narrow, plan.window, plan.memo, scale)
        context = cast(Any, ctx)
        context.save_for_backward(*parts, sink_H, out_BSHD, lse_BHS)
        context.plan, context.scale = plan, scale
        return out_BSHD

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        context = cast(Any, ctx)
        query_BHSD, key_BGSD, value_BGSD, sink_H, out_BSHD, lse_BHS = context.saved_tensors
        kernel, plan = chosen("attention", query_BHSD)[1], context.plan
        *found, delta_BHS = kernel(
            grads[0].contiguous(), query_BHSD, key_BGSD, value_BGSD, out_BSHD, lse_BHS, *plan.narrow, plan.window,
            plan.memo, context.scale,
        )  # fmt: skip
        d_sink = None
        if context.needs_input_grad[3]:
            share_BHS = torch.exp(sink_H.float()[:, None] - lse_BHS)
            d_sink = -(share_BHS * delta_BHS).sum((0, 2)).to(sink_H.dtype)
        return (*(part.transpose(1, 2) for part in found), d_sink, None, None)
