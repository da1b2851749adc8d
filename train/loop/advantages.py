"""What a rollout is worth beside the others of its group.

Legend: N rollouts of a step, of all processes, group after group; K rewards; P groups, of G rollouts each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Scale = Literal["group", "batch", "whitened", "none"]
Baseline = Literal["group", "leave_one_out"]
SAME = 1e-8
"""Deviation up to which the rollouts of a group are all worth the same."""
SMALLEST_DEVIATION = 1e-4
"""Added to the deviation that advantages are divided by, as in TRL."""


@dataclass(frozen=True)
class Advantages:
    """reward_N: weighted sum of the rewards that apply, NaN of an invalid rollout; advantage_N: 0 of such a one.
    float64."""

    reward_N: torch.Tensor
    advantage_N: torch.Tensor
    deviation_N: torch.Tensor

    @property
    def dead(self) -> float:
        """Share of rollouts in groups that teach nothing."""
        return float((self.deviation_N <= SAME).double().mean())


def advantages_of(
    scores: Sequence[Sequence[float]],
    weights: Sequence[float],
    group: int,
    scale: Scale = "group",
    baseline: Baseline = "group",
) -> Advantages:
    """scores (N, K): NaN where a reward does not apply; a rollout without any number is invalid: outside of the mean
    and of the deviation of its group, and of advantage 0. scale: what advantages are divided by; `whitened` ones have a
    mean of 0 and a deviation of 1 over the step (REINFORCE++-baseline, arXiv:2501.03262). baseline: the mean of the
    group, or of its others (RLOO, arXiv:2402.14740)."""
    score_NK = torch.tensor(scores, dtype=torch.float64).reshape(len(scores), -1)
    reward_N = (score_NK * torch.tensor(weights, dtype=torch.float64)).nansum(1)
    reward_N[score_NK.isnan().all(1)] = torch.nan
    reward_PG = reward_N.view(-1, group)
    centred_PG = reward_PG - reward_PG.nanmean(1, keepdim=True)
    if baseline == "leave_one_out":  # of a rollout alone in its group there are no others
        count_P1 = (~reward_PG.isnan()).sum(1, keepdim=True)
        centred_PG = centred_PG * count_P1 / (count_P1 - 1)
    centred_N = centred_PG.flatten()
    deviation_N = _deviation(reward_PG).repeat_interleave(group)
    if scale == "whitened":
        centred_N = centred_N - centred_N.nanmean()
    divisor_N = {
        "group": deviation_N,
        "batch": _deviation(reward_N[None]).expand(len(reward_N)),
        "whitened": _deviation(centred_N[None]).expand(len(reward_N)),
        "none": torch.ones_like(reward_N) - SMALLEST_DEVIATION,
    }[scale]
    divided_N = centred_N / (divisor_N + SMALLEST_DEVIATION)
    return Advantages(reward_N, divided_N.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), deviation_N)


def live_groups(advantages: Advantages, group: int, wanted: int) -> torch.Tensor:
    """The first `wanted` groups (numbers, in order) in which some rollout is worth more than another; fewer where there
    are fewer (DAPO's dynamic sampling, arXiv:2503.14476)."""
    alive = (advantages.deviation_N.view(-1, group)[:, 0].nan_to_num() > SAME).nonzero()[:, 0]
    return alive[:wanted]


def _deviation(values: torch.Tensor) -> torch.Tensor:
    """Sample deviation of each row, NaN left out; NaN where fewer than two are left."""
    known = ~values.isnan()
    count = known.sum(1)
    squares = (values - values.nanmean(1, keepdim=True)).nan_to_num().square().sum(1)
    return torch.where(count > 1, squares / (count - 1).clamp(min=1), torch.nan).sqrt()
