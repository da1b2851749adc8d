"""The figures of a report by name: drawn once, for the page and for the files next to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from counterpoint.data.conversation import EFFORTS
from counterpoint.train.evals.card import card_bands, size_of
from counterpoint.train.evals.channels import Rate
from counterpoint.train.evals.drawing import Drawing
from counterpoint.train.evals.effort import points_of_rows
from counterpoint.train.evals.figures import Band, Curve, Pair, Series, Who, accuracy_by_length, dumbbells, lines
from counterpoint.train.evals.findings import Findings
from counterpoint.train.evals.report_data import BASE, TUNED, Numbers, Report, Row

MAX_TASKS = 8
CHANNELS = ("analysis", "commentary", "final")
_CURVES = {"channel-correct": "channel_correct", "right calls": "right_calls", "right answers": "right_answers"}
_SIDES: tuple[Who, ...] = (BASE, TUNED)


@dataclass(frozen=True, slots=True)
class Figure:
    """name: of its files. section: of the page, `verdict`, `accuracy` or `steps`."""

    name: str
    section: str
    caption: str
    drawing: Drawing


def figures_of(report: Report, findings: Findings) -> list[Figure]:
    """Every figure whose numbers were measured."""
    return [_rates(findings), *_accuracies(report), *_curves(report)]


def rates_of(numbers: Numbers) -> dict[str, Rate]:
    """The rates of the first figure."""
    return {
        "channel-correct": numbers.correct,
        "right answers": numbers.answers,
        "expected calls made": numbers.calls,
        "calls without a fault": numbers.valid_calls,
        "with analysis": numbers.with_analysis,
    }


def _rates(findings: Findings) -> Figure:
    sides = {who: rates_of(measured.numbers) for who, measured in findings.sides.items()}
    names = rates_of(findings.shown.numbers)
    pairs = [Pair(name, *(_ends(sides[who][name]) if who in sides else None for who in _SIDES)) for name in names]
    drawing = dumbbells([pair for pair in pairs if pair.base or pair.tuned])
    return Figure("rates", "verdict", "Rates with 95 % intervals", drawing)


def _accuracies(report: Report) -> list[Figure]:
    """One figure over all samples with a truth, and where there are several tasks one for each."""
    rows = {who: _scored(side.rows) for who, side in ((BASE, report.base), (TUNED, report.tuned)) if side is not None}
    tasks = list(dict.fromkeys(row["task"] for side in rows.values() for row in side))
    labels = {who: side.label for who, side in ((BASE, report.base), (TUNED, report.tuned)) if side is not None}
    size = size_of(report.model)
    out: list[Figure] = []
    for task in [None, *tasks[:MAX_TASKS]] if len(tasks) > 1 else tasks:
        chosen = {who: [row for row in side if task in (None, row["task"])] for who, side in rows.items()}
        curves = [Curve(who, labels[who], points) for who in _SIDES if (points := points_of_rows(chosen.get(who, ())))]
        if sum(len(curve.points) for curve in curves) < 2:
            continue
        bands = card_bands(task, size) if task else ()
        name = "accuracy" if task is None or len(tasks) == 1 else f"accuracy-{_file_name(task)}"
        caption = f"Task {task}" if task else "All tasks"
        out.append(Figure(name, "accuracy", caption, accuracy_by_length(curves, bands, f"card {size}")))
    return out


def _scored(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["score"] is not None]


def _curves(report: Report) -> list[Figure]:
    """The evaluations of a run and its losses, by step."""
    steps: dict[float, Mapping[str, float]] = {}
    for point in report.points:
        if point.get("channel_correct") is not None and (point["who"] == TUNED or point["step"] not in steps):
            steps[point["step"]] = point
    out: list[Figure] = []
    if len(steps) > 1:
        n, series = len(report.shown.rows), []
        for name, key in _CURVES.items():
            one = _by_step(name, key, steps)
            band = [_band_of(step, v, n, steps[step]) for step, v in one.points] if name == "channel-correct" else []
            series.append(replace(one, band=band))
        drawn = lines(series, "step", "rate", (0.0, 1.0))
        out.append(Figure("rates-by-step", "steps", "Rates of sampled prompts, by step", drawn))
        thoughts = [_by_step(effort, f"analysis_tokens/{effort}", steps) for effort in EFFORTS]
        if sum(len(one.points) > 1 for one in thoughts) > 1:
            drawn = lines(thoughts, "step", "tokens of analysis")
            out.append(Figure("thoughts-by-step", "steps", "Mean tokens of analysis at each effort, by step", drawn))
    names = {**{channel: f"loss_{channel}" for channel in CHANNELS}, "all channels": "loss"}
    losses = [
        Series(name, [(float(p["step"]), float(p[key])) for p in report.losses if p.get(key) is not None])
        for name, key in names.items()
    ]
    if any(len(s.points) > 1 for s in losses):
        drawn = lines(losses, "step", "loss")
        out.append(Figure("loss-by-step", "steps", "Training loss, overall and by channel", drawn))
    return out


def _band_of(step: float, value: float, n: int, point: Mapping[str, float]) -> Band:
    """The interval of an evaluation, as it was measured; Wilson's for a run that was made without it."""
    if "channel_correct_low" in point:
        return step, point["channel_correct_low"], point["channel_correct_high"]
    return _band(step, Rate(round(value * n), n))


def _by_step(name: str, key: str, steps: Mapping[float, Mapping[str, float]]) -> Series:
    return Series(name, [(step, float(p[key])) for step, p in sorted(steps.items()) if p.get(key) is not None])


def _ends(rate: Rate) -> Band | None:
    """(rate, low, high); None where nothing was measured."""
    return None if rate.share is None else (rate.share, *interval(rate))


def _band(step: float, rate: Rate) -> Band:
    return step, *interval(rate)


def interval(rate: Rate) -> tuple[float, float]:
    values = rate.as_dict()
    return values["low"], values["high"]


def _file_name(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", task).strip("-").lower() or "task"
