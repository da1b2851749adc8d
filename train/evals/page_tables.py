"""Rows of the report's tables: rules, tool calls, samples of a prompt, rewards, languages, each with both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.harmony.codes import CODES, TOOL_CODES
from counterpoint.data.intervals import Estimate
from counterpoint.train.evals.channels import Rate
from counterpoint.train.evals.findings import Findings, Measured
from counterpoint.train.evals.language_drift import CHANNELS
from counterpoint.train.evals.results import Cell
from counterpoint.train.scoring.languages import LANGUAGES

MOST_LANGUAGES = 4
"""Languages of a channel at an effort; rarer ones are in report.json."""


@dataclass(frozen=True, slots=True)
class Rates:
    """One rate for each side. code: a rule's, or empty."""

    name: str
    code: str
    rates: Sequence[Rate]


@dataclass(frozen=True, slots=True)
class RewardRow:
    """One reward of a task at an effort: an estimate for each side, None where it was not given."""

    task: str
    effort: str
    name: str
    estimates: Sequence[Estimate | None]


@dataclass(frozen=True, slots=True)
class LanguageRow:
    """One language of a channel at an effort. drifted: into it."""

    channel: str
    effort: str
    name: str
    rates: Sequence[Rate]
    drifted: bool


def broken(sides: Sequence[Measured], code: str) -> list[Rate]:
    """Samples that break a rule, a rate for each side."""
    return [m.numbers.violations.get(code, Rate(0, m.numbers.n)) for m in sides]


def violations(sides: Sequence[Measured]) -> list[Rates]:
    """What the shown side breaks most first."""
    codes = {code for measured in sides for code in measured.numbers.violations}
    rows = [Rates(CODES.get(code, ""), code, broken(sides, code)) for code in codes]
    return sorted(rows, key=lambda row: ([-rate.count for rate in reversed(row.rates)], row.code))


def tool_calls(sides: Sequence[Measured]) -> list[Rates]:
    """Empty where no call was expected and none made."""
    if not any(m.numbers.calls.n or m.numbers.valid_calls.n for m in sides):
        return []
    faults = sorted({code for m in sides for code in m.numbers.violations} & TOOL_CODES)
    return [
        Rates("expected calls made, tool and arguments", "", [m.numbers.calls for m in sides]),
        Rates("the right tool, whatever the arguments", "", [m.numbers.right_tool for m in sides]),
        Rates("no fault, of samples with a call", "", [m.numbers.valid_calls for m in sides]),
        *(Rates("", code, broken(sides, code)) for code in faults),
    ]


def tasks(sides: Sequence[Measured]) -> list[tuple[Cell, str]]:
    """A cell and the label of its side for each task, effort and side."""
    keys = dict.fromkeys((cell.task, cell.effort) for m in sides for cell in m.tasks)
    return [
        (cell, measured.label)
        for key in keys
        for measured in sides
        for cell in measured.tasks
        if (cell.task, cell.effort) == key
    ]


def passes(cells: Iterable[tuple[Cell, str]]) -> list[tuple[Cell, str, int]]:
    """A row for each k, of tasks with several samples of a prompt."""
    return [(cell, label, k) for cell, label in cells for k in cell.pass_at if max(cell.pass_at) > 1]


def rewards(sides: Sequence[Measured]) -> list[RewardRow]:
    keys: dict[tuple[str, str, str], None] = {}
    found: list[Mapping[tuple[str, str, str], Estimate]] = []
    for measured in sides:
        own = {
            (cell.task, cell.effort, name): estimate
            for cell in measured.tasks
            if cell.rollouts is not None
            for name, estimate in cell.rollouts.rewards.items()
        }
        keys |= dict.fromkeys(own)
        found.append(own)
    return [RewardRow(*key, [own.get(key) for own in found]) for key in keys]


def languages(found: Findings) -> list[LanguageRow]:
    """Of both channels by effort, the most frequent of the shown side first, and every one that it drifted into."""
    sides = list(found.sides.values())
    drifted = {(drift.channel, drift.effort, drift.language) for drift in found.drifts}
    rows: list[LanguageRow] = []
    for channel in CHANNELS:
        for effort in EFFORTS:
            by_side = [measured.languages[channel].get(effort, {}) for measured in sides]
            most = {
                code: [side[code].count if code in side else 0 for side in by_side] for side in by_side for code in side
            }
            order = sorted(most, key=lambda code: [-count for count in reversed(most[code])])
            told = [c for n, c in enumerate(order) if n < MOST_LANGUAGES or (channel, effort, c) in drifted]
            for code in told:
                rates = [
                    side.get(code, Rate(0, min(_told(side), m.numbers.items)))
                    for side, m in zip(by_side, sides, strict=True)
                ]
                name = LANGUAGES.get(code, code)
                rows.append(LanguageRow(channel, effort, name, rates, (channel, effort, code) in drifted))
    return rows


def _told(side: Mapping[str, Rate]) -> int:
    """Samples whose language can be told."""
    return next((rate.n for rate in side.values()), 0)
