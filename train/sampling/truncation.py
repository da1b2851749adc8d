"""The part of a distribution that is sampled from: top-k, top-p (nucleus) and min-p, in vLLM's order.

Legend: B rows, V rows of the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch


class Truncating(Protocol):
    """Settings that have the three, `top_k` null for all tokens."""

    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def min_p(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Truncation:
    """Keeps the `top_k` likeliest tokens (0: all), the likeliest whose probabilities add up to `top_p`, and those of at
    least `min_p` times the probability of the likeliest.

    In the order of vLLM 0.32 (both of its model runners): after the temperature min-p, then top-k, then top-p, each on
    what the one before has left, renormalised. Equal logits at the border are kept together, so that what is kept
    depends on the logits alone, and is the same where they are sampled from and where they are learned from.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @classmethod
    def of(cls, settings: Truncating) -> Truncation:
        return cls(settings.top_p, settings.top_k or 0, settings.min_p)

    @property
    def whole(self) -> bool:
        """Whether it leaves everything."""
        return self == WHOLE

    def cut_(self, logits_BV: torch.Tensor, always_B: torch.Tensor | None = None) -> torch.Tensor:
        """`logits_BV`, in float32 at least and after the temperature, in place: what is not kept is so low that its
        probability is 0, and finite. always_B: a row of the vocabulary that is kept whatever it is."""
        if self.whole:
            return logits_BV
        kept_B1 = None if always_B is None else logits_BV.gather(1, always_B[:, None])
        logits_BV.masked_fill_(logits_BV < self._least(logits_BV), torch.finfo(logits_BV.dtype).min / 4)
        return logits_BV if kept_B1 is None or always_B is None else logits_BV.scatter_(1, always_B[:, None], kept_B1)

    def _least(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """The smallest logit (B, 1) that is kept."""
        least_B1 = torch.full_like(logits_BV[:, :1], -math.inf)
        if self.min_p:
            least_B1 = logits_BV.amax(1, keepdim=True) + math.log(self.min_p)
        if 0 < self.top_k < logits_BV.shape[1]:
            least_B1 = torch.maximum(least_B1, logits_BV.topk(self.top_k).values[:, -1:])
        if self.top_p < 1:
            rising_BV = logits_BV.masked_fill(logits_BV < least_B1, -math.inf).sort(1).values
            below_BV = rising_BV.softmax(1).cumsum_(1) <= 1 - self.top_p
            first_B1 = below_BV.sum(1, keepdim=True).clamp_(max=logits_BV.shape[1] - 1)
            least_B1 = rising_BV.gather(1, first_B1)
        return least_B1


WHOLE = Truncation()
"""Leaves everything."""
