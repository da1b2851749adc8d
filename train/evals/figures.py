"""Figures of a report as inline SVG: drawn from numbers, without scripts, labelled where the eye is, readable in grey.

Colours are classes (`s0`, `s1`, ...) that the page's style defines; every series has its own dash or marker as well.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Band = tuple[float, float, float]

_WIDTH, _HEIGHT = 470.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 104.0, 12.0, 34.0
_LINE_HEIGHT = 15.0


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
    base: tuple[float, float, float] | None
    tuned: tuple[float, float, float] | None


def lines(series: Sequence[Series], x_name: str, y_name: str, y_range: tuple[float, float] | None = None) -> str:
    """A line chart; names stand at the ends of the lines. y_range None fits the data from 0."""
    series = [s for s in series if s.points]
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    low, high = y_range or (0.0, _round_top(max([*ys, 1e-9])))
    first, last = min(xs), max(xs)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (min(max(y, low), high) - low) / (high - low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(low, high, first, last, at)]
    for i, s in enumerate(series):
        if len(s.band) > 1:
            edge = [at(x, upper) for x, _, upper in s.band] + [at(x, lower) for x, lower, _ in reversed(s.band)]
            parts.append(f'<polygon class="band s{i}" points="{_pairs(edge)}"/>')
        drawn = [at(x, y) for x, y in s.points]
        parts.append(f'<polyline class="line s{i}" points="{_pairs(drawn)}"/>')
        if len(drawn) <= 40:
            parts += [f'<circle class="dot s{i}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in drawn]
    ends = [(at(*s.points[-1]), s.name, i) for i, s in enumerate(series)]
    parts += [_text(x + 8, y + 4, name, f"name s{i}") for (x, _), name, i, y in _spread(ends)]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 2, x_name, "axis", "middle"))
    told = "; ".join(f"{s.name} from {s.points[0][1]:.3g} to {s.points[-1][1]:.3g}" for s in series)
    return _svg(_WIDTH, _HEIGHT, f"{y_name} by {x_name}: {told}", parts)


def dumbbells(pairs: Sequence[Pair]) -> str:
    """Rates from 0 to 1, a row each: base as a ring, tuned as a disc, both with their intervals."""
    left, right, row = 190.0, 96.0, 34.0
    height = _TOP + row * len(pairs) + 22
    width = 640.0

    def at(rate: float) -> float:
        return left + rate * (width - left - right)

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line class="grid" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{_TOP}" y2="{height - 20:.1f}"/>')
        parts.append(_text(at(tick), height - 4, f"{tick:.2f}", "axis", "middle"))
    told = []
    for i, pair in enumerate(pairs):
        middle = _TOP + row * (i + 0.5)
        parts.append(_text(left - 14, middle + 4, pair.name, "label", "end"))
        for who, value, shift in (("base", pair.base, -5.0), ("tuned", pair.tuned, 5.0)):
            if value is None:
                continue
            rate, low, high = value
            y = middle + shift
            span = f'x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
            parts.append(f'<line class="range {who}" {span}/>')
            parts.append(f'<circle class="mark {who}" cx="{at(rate):.1f}" cy="{y:.1f}" r="4.5"/>')
            told.append(f"{pair.name} {who} {rate:.2f}")
        ends = " → ".join("–" if value is None else f"{value[0]:.2f}" for value in (pair.base, pair.tuned))
        parts.append(_text(width - right + 14, middle + 4, ends, "value"))
    return _svg(width, height, "; ".join(told), parts)


def _round_top(value: float) -> float:
    """The least of 1, 2, 3, 4, 6, 8 times a power of ten that is not below `value`; a quarter of it reads well."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 6, 8, 10) if step * power >= value * 0.9999)


def _axes(low: float, high: float, first: float, last: float, at: Callable[[float, float], Point]) -> str:
    out = []
    for i in range(5):
        y_value = low + (high - low) * i / 4
        _, y = at(first, y_value)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(_text(_LEFT - 7, y + 4, f"{y_value:.2f}" if high - low < 10 else f"{y_value:.0f}", "axis", "end"))
    for x_value in sorted({first, (first + last) / 2, last}):
        x, _ = at(x_value, low)
        out.append(_text(x, _HEIGHT - _BOTTOM + 15, f"{x_value:.0f}", "axis", "middle"))
    return "".join(out)


def _spread(ends: list[tuple[tuple[float, float], str, int]]) -> list[tuple[tuple[float, float], str, int, float]]:
    """Names at the ends of lines, moved apart where they would overlap, and kept inside the figure."""
    placed: list[tuple[tuple[float, float], str, int, float]] = []
    y = -1e9
    for (x, wanted), name, i in sorted(ends, key=lambda end: end[0][1]):
        y = max(wanted, y + _LINE_HEIGHT)
        placed.append(((x, wanted), name, i, y))
    over = max(0.0, (placed[-1][3] if placed else 0.0) - (_HEIGHT - _BOTTOM))
    return [(end, name, i, y - over) for end, name, i, y in placed]


def _text(x: float, y: float, text: str, classes: str, anchor: str = "start") -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _pairs(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(width: float, height: float, told: str, parts: Sequence[str]) -> str:
    label = html.escape(told, quote=True)
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
