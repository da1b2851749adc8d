"""The loss: weighted negative log-likelihood at trained positions only.

Legend: T trained positions, C positions of a chunk, H hidden, V rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from counterpoint.train.model.precision import on_cuda

LOGIT_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
"""Largest block of logits held at once, by device: 128 MiB and 1 GiB. Chosen; results do not depend on it."""
WEIGHT_ROWS = 8192
"""Rows of the head that are widened at once where the head is narrower than the products. Chosen; results do not
depend on it."""


def weighted_nll(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    target_ids_T: torch.Tensor,
    target_weights_T: torch.Tensor,
    normaliser: torch.Tensor | float,
    lean: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of weight x nll / normaliser, detached float32 nll of each position).

    The normaliser is the sum of weights over the whole optimizer step, so that micro-batches and processes simply add
    up. lean holds the logits of one chunk of positions at a time and forms the gradients in the forward pass; otherwise
    all logits are made, as plain autograd does.
    """
    if not lean:
        return _plain(hidden_TH, weight_VH, target_ids_T, target_weights_T, normaliser)
    normaliser = torch.as_tensor(normaliser, device=hidden_TH.device)
    want = torch.is_grad_enabled()
    inputs = (hidden_TH, weight_VH, target_ids_T, target_weights_T, normaliser)
    with torch.autocast(hidden_TH.device.type, enabled=False):
        loss, nll_T = cast(
            Any, _ChunkedNll.apply(*inputs, want and hidden_TH.requires_grad, want and weight_VH.requires_grad)
        )
    return loss, nll_T.float()


def _plain(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, target_ids_T: torch.Tensor, target_weights_T: torch.Tensor,
    normaliser: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    logits_TV = torch.nn.functional.linear(hidden_TH, weight_VH)
    logits_TV = logits_TV.float() if logits_TV.dtype != torch.float64 else logits_TV
    nll_T = torch.nn.functional.cross_entropy(logits_TV, target_ids_T, reduction="none")
    loss = (nll_T * target_weights_T.to(nll_T.dtype)).sum() / normaliser
    return loss, nll_T.detach().float()


class _ChunkedNll(torch.autograd.Function):
    """`d hidden = weight / normaliser (softmax - onehot) W`, formed while the chunk's logits are in memory."""

    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_TH, weight_VH, target_T, target_weight_T, normaliser, want_hidden, want_weight = inputs
        wide = torch.promote_types(hidden_TH.dtype, torch.float32)
        factor_T = target_weight_T.to(wide) / normaliser
        nll_T = hidden_TH.new_empty(len(hidden_TH), dtype=wide)
        d_hidden_TH = torch.empty_like(hidden_TH) if want_hidden else None
        d_weight_VH = torch.zeros_like(weight_VH, dtype=wide) if want_weight else None
        for part, logits_CV in _chunks(hidden_TH, weight_VH, wide):
            hidden_CH, target_C = hidden_TH[part], target_T[part]
            _logits(hidden_CH, weight_VH, logits_CV)
            torch.log_softmax(logits_CV, -1, out=logits_CV)
            target_log_C1 = logits_CV.gather(1, target_C[:, None])
            nll_T[part] = -target_log_C1[:, 0]
            if d_hidden_TH is None and d_weight_VH is None:
                continue
            # Before anything is rounded to the head's type: of a target that is nearly certain, little is left.
            d_logits_CV = logits_CV.exp_().scatter_(1, target_C[:, None], torch.expm1(target_log_C1))
            factor_C1 = factor_T[part, None]
            if d_hidden_TH is not None:
                d_hidden_TH[part] = (_product(d_logits_CV, weight_VH) * factor_C1).to(hidden_TH.dtype)
            if d_weight_VH is not None:
                d_weight_VH.addmm_(d_logits_CV.T, hidden_CH.to(wide) * factor_C1)
        context = cast(Any, ctx)
        context.mark_non_differentiable(nll_T)
        context.gradients = d_hidden_TH, None if d_weight_VH is None else d_weight_VH.to(weight_VH.dtype)
        return (nll_T * factor_T).sum(), nll_T

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        context = cast(Any, ctx)
        d_hidden_TH, d_weight_VH = (None if d is None else d * grads[0].to(d.dtype) for d in context.gradients)
        return d_hidden_TH, d_weight_VH, None, None, None, None, None


def _chunks(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, wide: torch.dtype
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slices of positions, each with room for its logits: one buffer for all."""
    total, rows = len(hidden_TH), len(weight_VH)
    size = max(1, min(total, LOGIT_BYTES["cuda" if on_cuda(hidden_TH) else "cpu"] // (rows * wide.itemsize)))
    buffer_CV = hidden_TH.new_empty(size, rows, dtype=wide)
    for first in range(0, total, size):
        last = min(first + size, total)
        yield slice(first, last), buffer_CV[: last - first]


def _logits(hidden_CH: torch.Tensor, weight_VH: torch.Tensor, out_CV: torch.Tensor) -> None:
    """out = hidden W^T, summed in float32 at least."""
    if weight_VH.dtype == out_CV.dtype:
        torch.mm(hidden_CH.to(out_CV.dtype), weight_VH.T, out=out_CV)
    elif on_cuda(weight_VH):
        torch.mm(hidden_CH.to(weight_VH.dtype), weight_VH.T, out_dtype=out_CV.dtype, out=out_CV)
    else:  # on a CPU even where it multiplies bfloat16: that product comes back rounded to bfloat16
        hidden_CH = hidden_CH.to(out_CV.dtype)
        for part, block in _widened(weight_VH, out_CV.dtype):
            torch.mm(hidden_CH, block.T, out=out_CV[:, part])


def _product(d_logits_CV: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    """d_logits W (C, H) in the type of d_logits."""
    if weight_VH.dtype == d_logits_CV.dtype:
        return d_logits_CV @ weight_VH
    if on_cuda(weight_VH):
        return torch.mm(d_logits_CV.to(weight_VH.dtype), weight_VH, out_dtype=d_logits_CV.dtype)
    out_CH = d_logits_CV.new_zeros(len(d_logits_CV), weight_VH.shape[1])
    for part, block in _widened(weight_VH, d_logits_CV.dtype):
        out_CH.addmm_(d_logits_CV[:, part], block)
    return out_CH


def _widened(weight_VH: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of the head in `dtype`, all in one buffer: allocating memory for each part costs more than the widening."""
    buffer_RH = weight_VH.new_empty(min(WEIGHT_ROWS, len(weight_VH)), weight_VH.shape[1], dtype=dtype)
    for first in range(0, len(weight_VH), WEIGHT_ROWS):
        part = slice(first, min(first + WEIGHT_ROWS, len(weight_VH)))
        yield part, buffer_RH[: part.stop - first].copy_(weight_VH[part])
