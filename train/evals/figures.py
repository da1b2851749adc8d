"""Figures of a report, drawn from numbers: labelled next to the data, readable in greyscale, with a text alternative.

Every series has its own dash or marker as well as its colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from counterpoint.train.evals.card import CardBand
from counterpoint.train.evals.drawing import Circle, Drawing, Mark, Path, Point, Text
from counterpoint.train.evals.effort import Point as EffortPoint

Band = tuple[float, float, float]
Who = Literal["base", "tuned"]

_WIDTH, _HEIGHT = 470.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 104.0, 12.0, 34.0
_LINE_HEIGHT = 15.0
_N_STYLES = 4


@dataclass(frozen=True, slots=True)
class Series:
    """A line. points: (x, y) by x; band: (x, low, high), an interval around it."""

    name: str
    points: Sequence[Point]
    band: Sequence[Band] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """A row of `dumbbells`: two rates in [0, 1] with intervals (rate, low, high); None where there is none."""

    name: str
    base: Band | None
    tuned: Band | None


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one model from low to high effort; `who` gives the marker, `name` is written next to the last point."""

    who: Who
    name: str
    points: Sequence[EffortPoint]


def lines(series: Sequence[Series], x_name: str, y_name: str, y_range: Point | None = None) -> Drawing:
    """A line chart; names are at the ends of the lines. y_range None fits the data from 0.

    A series has the style of its index, whether or not those before it have points.
    """
    shown = [(i, s) for i, s in enumerate(series[:_N_STYLES]) if s.points]
    xs = [x for _, s in shown for x, _ in s.points]
    ys = [y for _, s in shown for _, y in s.points]
    low, high = y_range or (0.0, _round_top(max([*ys, 1e-9])))
    first, last = min(xs), max(xs)
    # Fonts differ: bold letters of DejaVu, the widest in use, take 8.2 units each on the average.
    width = max(_WIDTH, _WIDTH - _RIGHT + 12 + 8.2 * max(len(s.name) for _, s in shown))

    def at(x: float, y: float) -> Point:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (min(max(y, low), high) - low) / (high - low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    marks: list[Mark] = list(_axes(low, high, first, last, at))
    for i, s in shown:
        if len(s.band) > 1:
            edge = [at(x, upper) for x, _, upper in s.band] + [at(x, lower) for x, lower, _ in reversed(s.band)]
            marks.append(Path(f"band-s{i}", edge, closed=True))
        drawn = [at(x, y) for x, y in s.points]
        marks.append(Path(f"line-s{i}", drawn))
        if len(drawn) <= 40:
            marks += [Circle(f"dot-s{i}", x, y, 2.6) for x, y in drawn]
    ends = [(*at(*s.points[-1]), s.name, f"name-s{i}") for i, s in shown]
    marks += [Text(kind, x + 8, y + 4, name) for x, y, name, kind in _spread(ends, _HEIGHT - _BOTTOM)]
    marks.append(Text("axis", (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 2, x_name, "middle"))
    words = "; ".join(f"{s.name} from {s.points[0][1]:.3g} to {s.points[-1][1]:.3g}" for _, s in shown)
    return Drawing(width, _HEIGHT, f"{y_name} by {x_name}: {words}", marks)


def dumbbells(pairs: Sequence[Pair]) -> Drawing:
    """Rates from 0 to 1, a row each: base as a ring, tuned as a disc, both with their intervals."""
    left, right, row = 190.0, 96.0, 34.0
    height = _TOP + row * len(pairs) + 22
    width = 640.0

    def at(rate: float) -> float:
        return left + rate * (width - left - right)

    marks: list[Mark] = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        marks.append(Path("grid", [(at(tick), _TOP), (at(tick), height - 20)]))
        marks.append(Text("axis", at(tick), height - 4, f"{tick:.2f}", "middle"))
    words = []
    for i, pair in enumerate(pairs):
        middle = _TOP + row * (i + 0.5)
        marks.append(Text("label", left - 14, middle + 4, pair.name, "end"))
        for who, value, shift in (("base", pair.base, -5.0), ("tuned", pair.tuned, 5.0)):
            if value is None:
                continue
            rate, low, high = value
            y = middle + shift
            marks.append(Path(f"range-{who}", [(at(low), y), (at(high), y)]))
            marks.append(Circle(f"mark-{who}", at(rate), y, 4.5))
            words.append(f"{pair.name} {who} {rate:.2f}")
        there = [value for value in (pair.base, pair.tuned) if value is not None]
        ends = " → ".join(f"{value[0]:.2f}" for value in there)
        marks.append(Text("value", width - right + 14, middle + 4, ends))
    return Drawing(width, height, "; ".join(words), marks)


def accuracy_by_length(curves: Sequence[Curve], bands: Sequence[CardBand] = (), card: str = "") -> Drawing:
    """Accuracy against tokens of the chain of thought, a point an effort, tokens on a logarithmic axis.

    bands: the model card's figures, across the whole width, named `card`.
    """
    width, height, right = 640.0, 290.0, 150.0
    curves = [curve for curve in curves if curve.points]
    tokens = [max(1.0, point.analysis_tokens) for curve in curves for point in curve.points]
    first, last, ticks = _log_axis(min(tokens), max(tokens))

    def at(x: float, y: float) -> Point:
        across = math.log(max(1.0, x) / first) / math.log(last / first)
        return _LEFT + across * (width - _LEFT - right), height - _BOTTOM - y * (height - _TOP - _BOTTOM)

    marks: list[Mark] = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        marks.append(Path("grid", [at(first, tick), at(last, tick)]))
        marks.append(Text("axis", _LEFT - 7, at(first, tick)[1] + 4, f"{tick:.2f}", "end"))
    for tick in ticks:
        marks.append(Text("axis", at(tick, 0)[0], height - _BOTTOM + 15, f"{tick:,.0f}", "middle"))
    for band in bands:
        corners = [at(first, band.high), at(last, band.high), at(last, band.low), at(first, band.low)]
        marks.append(Path("card-band", corners, closed=True))
        marks.append(Path("card-line", [at(first, band.value), at(last, band.value)]))
    for curve in curves:
        marks += _curve_marks(curve, at)
    ends = [(*at(last, band.value), f"{card} {band.effort} {band.value:.3g}", "axis") for band in bands]
    ends += [
        (*at(curve.points[-1].analysis_tokens, curve.points[-1].accuracy), curve.name, _NAME[curve.who])
        for curve in curves
    ]
    marks += [Text(kind, width - right + 8, y + 4, name) for _, y, name, kind in _spread(ends, height - _BOTTOM)]
    marks.append(Text("axis", (_LEFT + width - right) / 2, height - 2, "mean tokens of the chain of thought", "middle"))
    words = [
        f"{c.name} {p.effort}: {p.accuracy:.2f} at {p.analysis_tokens:.0f} tokens" for c in curves for p in c.points
    ]
    words += [f"{card} {band.effort}: {band.value:.3g}" for band in bands]
    return Drawing(width, height, "accuracy by length of the chain of thought: " + "; ".join(words), marks)


_LINE: dict[Who, str] = {"tuned": "line-s0", "base": "line-s1"}
_NAME: dict[Who, str] = {"tuned": "name-s0", "base": "name-s1"}


def _curve_marks(curve: Curve, at: Callable[[float, float], Point]) -> list[Mark]:
    marks: list[Mark] = [Path(_LINE[curve.who], [at(p.analysis_tokens, p.accuracy) for p in curve.points])]
    for point in curve.points:
        x, y = at(point.analysis_tokens, point.accuracy)
        marks.append(
            Path(f"range-{curve.who}", [at(point.analysis_tokens, point.low), at(point.analysis_tokens, point.high)])
        )
        marks.append(Circle(f"mark-{curve.who}", x, y, 4.5))
        # Above and left of the point for one side, below and right of it for the other: curves rise, and two may meet.
        before = curve.who == "tuned" and x > _LEFT + 50
        place = (x - 8, y - 6) if before else (x + 8, y + 14)
        marks.append(Text("effort", *place, point.effort, "end" if before else "start"))
    return marks


def _log_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Ends of a logarithmic axis around [low, high], and the ticks 1, 2, 5, 10, ... on it."""
    steps = [base * 10.0**power for power in range(8) for base in (1, 2, 5)]
    first = max((step for step in steps if step <= low), default=1.0)
    last = min((step for step in steps if step >= high and step > first), default=high * 2)
    ticks = [step for step in steps if first <= step <= last]
    return first, last, ticks if len(ticks) <= 7 else [tick for tick in ticks if f"{tick:.0f}"[0] == "1"]


def _round_top(value: float) -> float:
    """The least of 1, 2, 3, 4, 6, 8 times a power of ten that is not below `value`; a quarter of it reads well."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 6, 8, 10) if step * power >= value * 0.9999)


def _axes(low: float, high: float, first: float, last: float, at: Callable[[float, float], Point]) -> Iterable[Mark]:
    for i in range(5):
        y_value = low + (high - low) * i / 4
        _, y = at(first, y_value)
        yield Path("grid", [(_LEFT, y), (_WIDTH - _RIGHT, y)])
        yield Text("axis", _LEFT - 7, y + 4, f"{y_value:.2f}" if high - low < 10 else f"{y_value:.0f}", "end")
    for x_value in sorted({first, (first + last) / 2, last}):
        yield Text("axis", at(x_value, low)[0], _HEIGHT - _BOTTOM + 15, f"{x_value:.0f}", "middle")


def _spread(ends: list[tuple[float, float, str, str]], lowest: float) -> list[tuple[float, float, str, str]]:
    """(x, y, name, kind) moved apart in y where names would overlap, and kept above `lowest`."""
    placed: list[tuple[float, float, str, str]] = []
    y = -1e9
    for x, wanted, name, kind in sorted(ends, key=lambda end: end[1]):
        y = max(wanted, y + _LINE_HEIGHT)
        placed.append((x, y, name, kind))
    over = max(0.0, (placed[-1][1] if placed else 0.0) - lowest)
    return [(x, y - over, name, kind) for x, y, name, kind in placed]
