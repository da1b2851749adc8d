"""What the passes of a step have measured, over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from counterpoint.train.loop.policy_loss import Measures


class StepMetrics:
    """Sums and extremes by name. acting: targets that have a part in the gradient of the rewards."""

    def __init__(self) -> None:
        self.means: dict[str, list[float]] = {}
        self.least: dict[str, float] = {}
        self.most: dict[str, float] = {}
        self.acting = 0.0

    def add(self, measures: Measures) -> None:
        """Those of a micro-batch."""
        means = {name: each.tolist() for name, each in measures.means.items()}
        least = {name: float(each) for name, each in measures.least.items()}
        most = {name: float(each) for name, each in measures.most.items()}
        self._merge(means, least, most, float(measures.acting))

    def of_all(self, gather: Callable[[list[Any]], list[Any]]) -> Self:
        """Those of all processes. Collective."""
        found = gather([(self.means, self.least, self.most, self.acting)])
        total = type(self)()
        for each in found:
            total._merge(*each)
        return total

    def values(self) -> dict[str, float]:
        """Means and extremes; a mean of nothing is left out."""
        means = {name: total / count for name, (total, count) in self.means.items() if count}
        return {**means, **self.least, **self.most}

    def _merge(
        self, means: dict[str, list[float]], least: dict[str, float], most: dict[str, float], acting: float
    ) -> None:
        for name, (total, count) in means.items():
            before = self.means.get(name, [0.0, 0.0])
            self.means[name] = [before[0] + total, before[1] + count]
        for name, value in least.items():
            self.least[name] = min(value, self.least.get(name, value))
        for name, value in most.items():
            self.most[name] = max(value, self.most.get(name, value))
        self.acting += acting
