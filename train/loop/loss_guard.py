"""Losses and gradients that must not reach the weights: not finite, or far above what they were."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

import torch

from counterpoint.configs.errors import RunError

SpikePolicy = Literal["warn", "skip", "stop"]
HISTORY = 50
LEAST_HISTORY = 10
"""Losses that a median is taken of, and the fewest: chosen, not measured; `train.spike_factor` is what a run sets."""
NAMED_ROWS = 20
"""Rows named in one line; a step of many rows would fill the screen."""


@dataclass
class SpikeWatch:
    """Detects a loss spike: a loss above `factor` times the median of the last 50.

    Nothing is a spike before 10 losses are known. A spike itself does not enter the history.
    """

    factor: float
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is a spike; remembers it if not."""
        if len(self.losses) >= LEAST_HISTORY and loss > self.factor * median(self.losses):
            return True
        self.losses.append(loss)
        return False

    def usual(self) -> float:
        return median(self.losses) if self.losses else math.nan

    def state(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def restore(self, state: dict[str, Any]) -> None:
        self.losses = deque(state["losses"], maxlen=HISTORY)


@dataclass(frozen=True)
class MicroBatch:
    """What is kept of one forward pass until its optimizer step is taken.

    sources: the examples of each of its rows ("file:line#turn"); target_row: (T,) row of each trained position;
    nll: (T,) its loss.
    """

    sources: Sequence[Sequence[str]]
    target_row: torch.Tensor
    nll: torch.Tensor

    def rows_not_finite(self) -> list[str]:
        bad: list[int] = self.target_row[~torch.isfinite(self.nll)].unique().tolist()
        return [source for row in bad for source in self.sources[row]]

    def rows(self) -> list[str]:
        return [source for row in self.sources for source in row]


def not_finite_error(
    step: int, loss: float, guilty: Sequence[str], everyone: Sequence[str], last_good: str | None
) -> RunError:
    """The error that stops the run before step `step`.

    guilty: examples whose own loss is not finite; everyone: all examples of the step; last_good: newest checkpoint.
    """
    if guilty:
        what = f"the loss is not finite in {named(guilty)} (rows of the step: {named(everyone)})"
    elif not math.isfinite(loss):
        what = f"the loss is not finite; rows of the step: {named(everyone)}"
    else:
        what = f"the gradient is not finite (the loss is {loss:.4g}); rows of the step: {named(everyone)}"
    kept = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint yet"
    return RunError(
        f"step {step}: {what}: stopped before the weights were changed, {kept}: "
        "look at these rows, or lower train.learning_rate"
    )


def named(sources: Sequence[str]) -> str:
    """Rows of examples ("file:line#turn") as "file:line", each once, the first 20."""
    rows = list(dict.fromkeys(source.rpartition("#")[0] or source for source in sources))
    return ", ".join(rows[:NAMED_ROWS]) + (f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else "")
