"""The losses of pairs and of rated completions: log-probabilities of completions in, a number out. No model.

Formulas as of TRL 1.16, whose losses and gradients the tests hold them to. A mean over a step is a sum with the share
of one: micro-batches and processes simply add up.

Legend: N pairs, or rated completions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from counterpoint.configs.preference_section import DpoLoss, DpoSettings


@dataclass(frozen=True)
class Side:
    """Completions, each (N,): log-probability (the sum over compared tokens) under the model and under the reference,
    and how many tokens are compared."""

    policy: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor

    @property
    def ratio(self) -> torch.Tensor:
        return self.policy - self.reference

    @property
    def mean_ratio(self) -> torch.Tensor:
        """Of a token."""
        return self.ratio / self.tokens.clamp(min=1)


def pair_loss(
    settings: DpoSettings, chosen: Side, rejected: Side, of_pair: float | torch.Tensor, of_token: float | torch.Tensor
) -> torch.Tensor:
    """The weighted sum of `settings.losses`. of_pair, of_token: share of a pair, or of a chosen token, in a mean."""
    total = chosen.policy.new_zeros(())
    for name, weight in zip(settings.losses, settings.loss_weights or [1.0] * len(settings.losses), strict=True):
        if name == "sft":
            total = total - weight * of_token * chosen.policy.sum()
        else:
            total = total + weight * of_pair * _each(name, settings, chosen, rejected).sum()
    return total


def _each(name: DpoLoss, settings: DpoSettings, chosen: Side, rejected: Side) -> torch.Tensor:
    """(N,), of one loss; sources are in docs/learning.md."""
    beta, up_N, down_N = settings.beta, chosen.ratio, rejected.ratio
    gap_N = beta * (up_N - down_N)
    if name == "sigmoid":
        return -logsigmoid(gap_N)
    if name == "hinge":
        return torch.relu(1 - gap_N)
    if name == "ipo":
        return (chosen.mean_ratio - rejected.mean_ratio - 1 / (2 * beta)) ** 2
    if name == "sigmoid_norm":
        return -logsigmoid(beta * (chosen.mean_ratio - rejected.mean_ratio))
    if name == "robust":
        noise = settings.label_smoothing
        return (noise * logsigmoid(-gap_N) - (1 - noise) * logsigmoid(gap_N)) / (1 - 2 * noise)
    if name == "nca_pair":
        return -logsigmoid(beta * up_N) - 0.5 * logsigmoid(-beta * up_N) - 0.5 * logsigmoid(-beta * down_N)
    if name == "bco_pair":
        return -logsigmoid(beta * up_N) - logsigmoid(-beta * down_N)
    if name == "sppo_hard":
        return (up_N - 0.5 / beta) ** 2 + (down_N + 0.5 / beta) ** 2
    if name == "apo_zero":
        return 1 - torch.sigmoid(beta * up_N) + torch.sigmoid(beta * down_N)
    assert name == "apo_down", f"{name} is no loss of pairs"
    return torch.sigmoid(beta * up_N) + 1 - torch.sigmoid(gap_N)


def rated_loss(
    settings: DpoSettings, side: Side, wanted_N: torch.Tensor, drift: torch.Tensor, of_row: float | torch.Tensor
) -> torch.Tensor:
    """`kto` (arXiv:2402.01306, equation 7), and with a drift of 0 `apo_zero_unpaired` (arXiv:2408.06266).

    drift: how far the model has moved from the reference, nats. of_row: share of a completion in the mean.
    """
    away_N = torch.where(wanted_N, side.ratio - drift, drift - side.ratio)
    weight_N = torch.where(wanted_N, settings.wanted_weight, settings.unwanted_weight)
    return (weight_N * (1 - torch.sigmoid(settings.beta * away_N))).sum() * of_row
