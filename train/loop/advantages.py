"""What a rollout is worth beside the others of its group.

Legend: N rollouts of a step, of all processes, group after group; K rewards; G rollouts of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

SMALLEST_DEVIATION = 1e-4
"""Added to the deviation that advantages are divided by, as in TRL."""


@dataclass(frozen=True)
class Advantages:
    """reward_N: weighted sum of the rewards that apply, NaN of an invalid rollout; advantage_N: 0 of such a one;
    dead: groups whose rollouts are all worth the same. float64."""

    reward_N: torch.Tensor
    advantage_N: torch.Tensor
    deviation_N: torch.Tensor

    @property
    def dead(self) -> float:
        """Share of rollouts in groups that teach nothing."""
        return float(torch.isclose(self.deviation_N, torch.zeros_like(self.deviation_N)).double().mean())


def advantages_of(
    scores: Sequence[Sequence[float]], weights: Sequence[float], group: int, scale: Literal["group", "batch", "none"]
) -> Advantages:
    """scores (N, K): NaN where a reward does not apply; a rollout without any number is invalid: outside of the mean
    and of the deviation of its group, and of advantage 0. scale: what advantages are divided by."""
    score_NK = torch.tensor(scores, dtype=torch.float64).reshape(len(scores), -1)
    reward_N = (score_NK * torch.tensor(weights, dtype=torch.float64)).nansum(1)
    reward_N[score_NK.isnan().all(1)] = torch.nan
    centred_N = (reward_N.view(-1, group) - reward_N.view(-1, group).nanmean(1, keepdim=True)).flatten()
    if scale == "batch":
        deviation_N = _deviation(reward_N[None]).expand(len(reward_N))
    else:
        deviation_N = _deviation(reward_N.view(-1, group)).repeat_interleave(group)
    divided_N = centred_N if scale == "none" else centred_N / (deviation_N + SMALLEST_DEVIATION)
    return Advantages(reward_N, divided_N.nan_to_num(nan=0.0), deviation_N)


def _deviation(values: torch.Tensor) -> torch.Tensor:
    """Sample deviation of each row, NaN left out; NaN where fewer than two are left."""
    known = ~values.isnan()
    count = known.sum(1)
    squares = (values - values.nanmean(1, keepdim=True)).nan_to_num().square().sum(1)
    return torch.where(count > 1, squares / (count - 1).clamp(min=1), torch.nan).sqrt()
