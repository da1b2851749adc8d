"""Whether a run learns anything: gradients that are 0, norms that jump, a loss that fell back to that of a guess."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from counterpoint.train.loop.loss_guard import SpikeWatch

NORM_FACTOR = 20.0
"""A gradient norm above this multiple of its recent median is told: chosen, not measured. Clipping bounds the step."""
NEAR_UNIFORM = 0.1
"""Nats below the loss of a uniform guess, ln V, within which a loss is one. Chosen."""
LEARNED = 1e-3
"""A loss below this has a gradient of 0 because nothing is left to learn. Chosen."""


@dataclass
class LearningWatch:
    """Told of every optimizer step; says what is wrong when it is first seen.

    patience: steps in a row, at a rate above 0, without a gradient or at the loss of a guess, after which nothing is
    learned. rows: V, of the vocabulary.
    """

    patience: int
    rows: int
    zeros: int = 0
    guesses: int = 0
    lowest: float = math.inf
    moved: bool = False
    jumps: int = 0

    def __post_init__(self) -> None:
        self.norms = SpikeWatch(NORM_FACTOR)

    def step(self, norm: float, rate: float, loss: float | None = None) -> str | None:
        """Why nothing is learned, in words, at the step at which that is clear; else None. loss: in nats a token."""
        if rate <= 0:
            return None
        self.zeros = 0 if norm or (loss is not None and loss < LEARNED) else self.zeros + 1
        self.moved = self.moved or self.zeros == 0
        if self.zeros == self.patience:
            return self.trouble()
        if loss is None:
            return None
        uniform = math.log(self.rows)
        # A model with random weights begins there; one that was better before is lost.
        is_guess = loss > uniform - NEAR_UNIFORM and self.lowest < uniform - 2 * NEAR_UNIFORM
        self.guesses = self.guesses + 1 if is_guess else 0
        self.lowest = min(self.lowest, loss)
        return self.trouble() if self.guesses == self.patience else None

    @property
    def stands(self) -> bool:
        """Whether what was learned before is still there: rewards or pairs that no longer differ change nothing, while
        a supervised loss without a gradient is that of a broken model."""
        return self.moved and math.isinf(self.lowest)

    def jump(self, norm: float) -> str | None:
        """A line for the first jump of the norm."""
        if not self.norms.is_spike(norm):
            return None
        self.jumps += 1
        usual = self.norms.usual()
        return f"the gradient's norm jumped to {norm:.4g} from about {usual:.4g}" if self.jumps == 1 else None

    def trouble(self) -> str | None:
        """Why nothing is learned as far as the run went; None where it learns."""
        if self.zeros >= self.patience or (self.zeros and not self.moved):
            return f"the gradient was 0 in the last {self.zeros} step{'s' * (self.zeros > 1)} at a rate above 0"
        if self.guesses >= self.patience:
            return f"the loss was that of a guess (ln {self.rows}) or above in the last {self.guesses} steps"
        return None

    def state(self) -> dict[str, Any]:
        lowest = self.lowest if math.isfinite(self.lowest) else None
        return {
            "zeros": self.zeros, "guesses": self.guesses, "lowest": lowest, "moved": self.moved, "jumps": self.jumps,
            "norms": self.norms.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.zeros, self.guesses, self.moved, self.jumps = (
            state[name] for name in ("zeros", "guesses", "moved", "jumps")
        )
        self.lowest = math.inf if state["lowest"] is None else state["lowest"]
        self.norms.restore(state["norms"])
