"""Does effort still steer how long the model thinks? By tokens of analysis, prompt by prompt, against the base.

Means by effort hide it: 100, 101 and 102 tokens are in order. What counts is how many times longer the same prompt is
thought about at the highest effort than at the lowest, with its interval, and how that changed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.intervals import Estimate, mean_estimate

Lengths = Mapping[Hashable, Mapping[str, float]]
"""For each prompt and effort the mean log(1 + tokens of analysis) of its samples."""


@dataclass(frozen=True, slots=True)
class Times:
    """A ratio (geometric mean over prompts) with its 95 % interval."""

    value: float
    low: float
    high: float
    prompts: int

    @classmethod
    def of(cls, logarithms: Sequence[float]) -> Times:
        found: Estimate = mean_estimate(logarithms)
        return cls(math.exp(found.value), math.exp(found.low), math.exp(found.high), found.n_clusters)

    def __str__(self) -> str:
        return f"{self.value:.2g} times (95 % interval {self.low:.2g} to {self.high:.2g})"


@dataclass(frozen=True, slots=True)
class Shift:
    """How many times longer the analysis is at `stop` than at `start`, on both sides; changed: tuned over base, paired
    by prompt. collapsed: at most half of the base's growth (as logarithms) is left; weaker: clearly less than the
    base's; kept: neither."""

    start: str
    stop: str
    base: Times
    tuned: Times
    changed: Times
    verdict: Literal["collapsed", "weaker", "kept"]

    @property
    def sentence(self) -> str:
        head = {"collapsed": "Effort has collapsed", "weaker": "Effort means less", "kept": "Effort is kept"}[
            self.verdict
        ]
        return (
            f"{head}: from {self.start} to {self.stop} the analysis grows {self.tuned}, the base's {self.base}, "
            f"on {self.changed.prompts} prompts."
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence}


def lengths(samples: Iterable[tuple[Hashable, str, int]]) -> Lengths:
    """samples: prompt, effort, tokens of analysis."""
    found: dict[Hashable, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for prompt, effort, tokens in samples:
        found[prompt][effort].append(math.log1p(tokens))
    return {
        prompt: {effort: sum(values) / len(values) for effort, values in efforts.items()}
        for prompt, efforts in found.items()
    }


def lengths_of_rows(rows: Iterable[Mapping[str, Any]]) -> Lengths:
    return lengths((_prompt(row), row["effort"], row["tokens"]["analysis"]) for row in rows)


def _prompt(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["task"], row.get("cluster") or row["id"]


def growth(found: Lengths) -> Times | None:
    """How many times longer the highest effort thinks than the lowest; None for under two prompts at both."""
    ends = _ends(found)
    values = [] if ends is None else [_grown(each, *ends) for each in found.values() if _has(each, *ends)]
    return Times.of(values) if len(values) > 1 else None


def shift(base: Lengths, tuned: Lengths) -> Shift | None:
    """The change from base to tuned on the prompts of both; None for under two of them, or one effort."""
    both = {key: (base[key], tuned[key]) for key in base if key in tuned}
    ends = _ends({key: a for key, (a, b) in both.items()})
    if ends is None:
        return None
    pairs = [(_grown(a, *ends), _grown(b, *ends)) for a, b in both.values() if _has(a, *ends) and _has(b, *ends)]
    if len(pairs) < 2:
        return None
    before, after = Times.of([a for a, _ in pairs]), Times.of([b for _, b in pairs])
    changed = Times.of([b - a for a, b in pairs])
    verdict: Literal["collapsed", "weaker", "kept"] = "kept"
    if before.low > 1 and changed.high < 1:
        verdict = "collapsed" if math.log(after.value) <= math.log(before.value) / 2 else "weaker"
    return Shift(*ends, before, after, changed, verdict)


def _ends(found: Lengths) -> tuple[str, str] | None:
    there = [effort for effort in EFFORTS if any(effort in efforts for efforts in found.values())]
    return (there[0], there[-1]) if len(there) > 1 else None


def _has(efforts: Mapping[str, float], start: str, stop: str) -> bool:
    return start in efforts and stop in efforts


def _grown(efforts: Mapping[str, float], start: str, stop: str) -> float:
    return efforts[stop] - efforts[start]
