"""The loss: weighted negative log-likelihood at trained positions only.

Legend: T trained positions, H hidden, V rows of the vocabulary.
"""

from __future__ import annotations

import torch


def weighted_nll(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    target_ids_T: torch.Tensor,
    target_weights_T: torch.Tensor,
    normaliser: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of weight x nll / normaliser, detached float32 nll of each position).

    The normaliser is the sum of weights over the whole optimizer step, so that micro-batches and processes just add up.
    """
    logits_TV = torch.nn.functional.linear(hidden_TH, weight_VH)
    logits_TV = logits_TV.float() if logits_TV.dtype != torch.float64 else logits_TV
    nll_T = torch.nn.functional.cross_entropy(logits_TV, target_ids_T, reduction="none")
    loss = (nll_T * target_weights_T.to(nll_T.dtype)).sum() / normaliser
    return loss, nll_T.detach().float()
