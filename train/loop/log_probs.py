"""Log-probabilities of target tokens, and the entropy of what predicts them, a chunk of positions at a time.

Legend: T target positions, C positions of a chunk, H hidden, V rows of the vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from counterpoint.train.loop.head import chunks, logits, product, softmax_less_target
from counterpoint.train.sampling.truncation import Truncation


def target_log_probs(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    target_ids_T: torch.Tensor,
    temperature: float = 1.0,
    truncation: Truncation | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability of each target, entropy at its position), nats, both (T,) in float32 at least and of
    `softmax(hidden W^T / temperature)`, or of the part of it that the truncation leaves, renormalised. The target is
    always a part of that, and which tokens are has no gradient.

    Both have a gradient. The logits of one chunk of positions are in memory at a time; the backward pass makes them
    again, because what each log-probability is worth is known only by then.
    """
    with torch.autocast(hidden_TH.device.type, enabled=False):
        return cast(Any, _ChunkedLogProbs.apply(hidden_TH, weight_VH, target_ids_T, temperature, truncation, False))[:2]


def target_log_probs_and_choices(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, target_ids_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`target_log_probs` at temperature 1, and whether each target is the most probable token, (T,) bool."""
    with torch.autocast(hidden_TH.device.type, enabled=False):
        return cast(Any, _ChunkedLogProbs.apply(hidden_TH, weight_VH, target_ids_T, 1.0, None, True))


class _ChunkedLogProbs(torch.autograd.Function):
    """With logits z = hidden W^T / temperature: d log p / dz = onehot - softmax, and
    d entropy / dz = -softmax (log softmax + entropy)."""

    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden_TH, weight_VH, target_T, temperature, truncation, choices = inputs
        wide = torch.promote_types(hidden_TH.dtype, torch.float32)
        log_prob_T, entropy_T = (hidden_TH.new_empty(len(hidden_TH), dtype=wide) for _ in range(2))
        first_T = torch.zeros_like(target_T, dtype=torch.bool)
        for part, log_softmax_CV in _log_softmax(hidden_TH, weight_VH, target_T, temperature, truncation, wide):
            log_prob_T[part] = log_softmax_CV.gather(1, target_T[part, None])[:, 0]
            if choices:
                first_T[part] = log_softmax_CV.argmax(1) == target_T[part]
            # No name for it: the next chunk's would be made while it lives.
            entropy_T[part] = -log_softmax_CV.mul_(log_softmax_CV.exp()).sum(1)
        context = cast(Any, ctx)
        context.save_for_backward(hidden_TH, weight_VH, target_T, entropy_T)
        context.drawn = temperature, truncation
        context.set_materialize_grads(False)
        context.mark_non_differentiable(first_T)
        return log_prob_T, entropy_T, first_T

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: torch.Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        context = cast(Any, ctx)
        d_log_prob_T, d_entropy_T, _ = grads
        hidden_TH, weight_VH, target_T, entropy_T = context.saved_tensors
        temperature, truncation = context.drawn
        wide = torch.promote_types(hidden_TH.dtype, torch.float32)
        want_hidden, want_weight = context.needs_input_grad[:2]
        d_hidden_TH = torch.empty_like(hidden_TH) if want_hidden else None
        d_weight_VH = torch.zeros_like(weight_VH, dtype=wide) if want_weight else None
        if d_log_prob_T is None:
            d_log_prob_T = torch.zeros_like(entropy_T)
        for part, log_softmax_CV in _log_softmax(hidden_TH, weight_VH, target_T, temperature, truncation, wide):
            of_entropy_CV = None
            if d_entropy_T is not None:
                of_entropy_CV = log_softmax_CV + entropy_T[part, None]
                of_entropy_CV *= d_entropy_T[part, None] * log_softmax_CV.exp()
            d_logits_CV, _ = softmax_less_target(log_softmax_CV, target_T[part])
            d_logits_CV *= -d_log_prob_T[part, None]
            if of_entropy_CV is not None:
                d_logits_CV -= of_entropy_CV
                del of_entropy_CV
            d_logits_CV /= temperature
            if d_hidden_TH is not None:
                d_hidden_TH[part] = product(d_logits_CV, weight_VH).to(hidden_TH.dtype)
            if d_weight_VH is not None:
                d_weight_VH.addmm_(d_logits_CV.T, hidden_TH[part].to(wide))
        return d_hidden_TH, None if d_weight_VH is None else d_weight_VH.to(weight_VH.dtype), None, None, None, None


def _log_softmax(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    target_T: torch.Tensor,
    temperature: float,
    truncation: Truncation | None,
    wide: torch.dtype,
) -> Any:
    """(slice of positions, their log-softmax (C, V)), in memory that the next chunk writes over."""
    for part, logits_CV in chunks(hidden_TH, weight_VH, wide):
        logits(hidden_TH[part], weight_VH, logits_CV)
        logits_CV /= temperature
        if truncation is not None:
            truncation.cut_(logits_CV, target_T[part])
        yield part, torch.log_softmax(logits_CV, -1, out=logits_CV)
