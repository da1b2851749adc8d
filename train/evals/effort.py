"""Which reasoning effort to use: what each step of it gains and costs, and one sentence for each use.

interactive   someone waits: the cheapest effort within 10 points of the best
agentic       many calls, and each failure costs a retry: the fewest tokens for one right answer
offline       nobody waits: the best, or the cheapest that cannot be distinguished from it
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.intervals import share_estimate
from counterpoint.train.evals.results import Row

Use = Literal["interactive", "agentic", "offline"]
USES: tuple[Use, ...] = ("interactive", "agentic", "offline")
CLOSE_ENOUGH = 0.10


@dataclass(frozen=True, slots=True)
class Point:
    """One effort: accuracy in [0, 1] with its 95 % interval; of a sample the mean tokens, the seconds where measured,
    and the tokens of its analysis."""

    effort: str
    accuracy: float
    low: float
    high: float
    tokens: float
    seconds: float | None = None
    analysis_tokens: float = 0.0

    @property
    def tokens_a_right_answer(self) -> float:
        """Expected tokens until one answer is right; infinite where none was."""
        return self.tokens / self.accuracy if self.accuracy else float("inf")


@dataclass(frozen=True, slots=True)
class Step:
    """From one effort to the next: points gained, tokens and seconds more; `told` where the intervals are disjoint."""

    start: str
    stop: str
    gained: float
    tokens: float
    seconds: float | None
    told: bool


@dataclass(frozen=True, slots=True)
class Advice:
    """points, steps from low to high; choice and sentence for each use. Empty where no item has a truth."""

    points: tuple[Point, ...]
    steps: tuple[Step, ...]
    choice: dict[Use, str]
    sentences: dict[Use, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def points_of_rows(rows: Iterable[Row]) -> list[Point]:
    """Points of all scored rows of an evaluation, whatever their task; intervals are clustered by item."""
    scored = [row for row in rows if row["score"] is not None]
    out: list[Point] = []
    for effort in EFFORTS:
        chosen = [row for row in scored if row["effort"] == effort]
        if not chosen:
            continue
        found = share_estimate(
            [row["score"] for row in chosen], [(row["task"], row.get("cluster") or row["id"]) for row in chosen]
        )
        seconds = [row.get("seconds") for row in chosen]
        whole = [second for second in seconds if second is not None]
        tokens = sum(len(row["ids"]) for row in chosen) / len(chosen)
        mean_seconds = sum(whole) / len(whole) if len(whole) == len(seconds) else None
        thought = sum(row["tokens"]["analysis"] for row in chosen) / len(chosen)
        out.append(Point(effort, found.value, found.low, found.high, tokens, mean_seconds, thought))
    return out


def advise(points: Sequence[Point]) -> Advice:
    """Which effort to use when. `points` from low to high, one an effort."""
    points = tuple(points)
    steps = tuple(_step(a, b) for a, b in pairwise(points))
    if not points:
        return Advice((), (), {}, {})
    chosen: dict[Use, Point] = {
        "interactive": _interactive(points),
        "agentic": min(points, key=lambda p: (p.tokens_a_right_answer, p.tokens)),
        "offline": _offline(points),
    }
    sentences: dict[Use, str] = {use: _sentence(use, chosen[use], points) for use in USES}
    return Advice(points, steps, {use: point.effort for use, point in chosen.items()}, sentences)


def _step(a: Point, b: Point) -> Step:
    seconds = None if a.seconds is None or b.seconds is None else b.seconds - a.seconds
    distinct = b.low > a.high or b.high < a.low
    return Step(a.effort, b.effort, b.accuracy - a.accuracy, b.tokens - a.tokens, seconds, distinct)


def _interactive(points: Sequence[Point]) -> Point:
    best = max(point.accuracy for point in points)
    close = [point for point in points if point.accuracy >= best - CLOSE_ENOUGH - 1e-9]
    return min(close, key=lambda point: point.tokens)


def _offline(points: Sequence[Point]) -> Point:
    best = max(points, key=lambda point: (point.accuracy, -point.tokens))
    similar = [point for point in points if point.high >= best.accuracy and point.accuracy >= best.low]
    return min([best, *similar], key=lambda point: point.tokens)


def _sentence(use: Use, point: Point, points: Sequence[Point]) -> str:
    what = f"{use.capitalize()}: {point.effort}, right {point.accuracy:.0%} of the time at {_cost(point)}"
    best = max(points, key=lambda p: (p.accuracy, -p.tokens))
    if best.accuracy < CLOSE_ENOUGH:
        top = f"best: {best.effort}, {best.accuracy:.0%}"
        return f"No effort is right often enough to choose by ({top})."
    if len(points) == 1:
        return f"{what}; no other effort was measured."
    if use == "agentic":
        return f"{what}, {point.tokens_a_right_answer:,.0f} tokens for one right answer, the least of all."
    if point is best:
        cheaper = [p for p in points if p.tokens < point.tokens]
        return f"{what}; {_gain(max(cheaper, key=lambda p: p.tokens), point)}." if cheaper else f"{what}, and the best."
    if use == "offline":
        other = f"{best.effort} ({best.accuracy:.0%} at {_cost(best)})"
        return f"{what}; {other} cannot be distinguished from it on these items."
    return f"{what}; {_gain(point, best)}."


def _gain(a: Point, b: Point) -> str:
    gained = 100 * (b.accuracy - a.accuracy)
    times = f" for {b.tokens / a.tokens:.1f} times the tokens" if a.tokens else ""
    return f"{b.effort} gains {gained:.0f} points on {a.effort}{times}"


def _cost(point: Point) -> str:
    seconds = "" if point.seconds is None else f" and {point.seconds:.2g} s"
    return f"{point.tokens:,.0f} tokens{seconds} a sample"
