"""The loss: weighted negative log-likelihood at trained positions only.

Legend: T trained positions, C positions of a chunk, H hidden, V rows of the vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from counterpoint.train.loop.head import chunks, logits, product, softmax_less_target


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
        for part, logits_CV in chunks(hidden_TH, weight_VH, wide):
            hidden_CH, target_C = hidden_TH[part], target_T[part]
            logits(hidden_CH, weight_VH, logits_CV)
            torch.log_softmax(logits_CV, -1, out=logits_CV)
            if d_hidden_TH is None and d_weight_VH is None:
                nll_T[part] = -logits_CV.gather(1, target_C[:, None])[:, 0]
                continue
            d_logits_CV, target_log_C = softmax_less_target(logits_CV, target_C)
            nll_T[part] = -target_log_C
            factor_C1 = factor_T[part, None]
            if d_hidden_TH is not None:
                d_hidden_TH[part] = (product(d_logits_CV, weight_VH) * factor_C1).to(hidden_TH.dtype)
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
