"""A report as one self-contained HTML page without scripts, from `report_page.html` next to this file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.harmony.codes import CODES, TOOL_CODES
from counterpoint.data.harmony.vocabulary import Vocabulary, load_vocabulary
from counterpoint.data.pages.templates import render_page
from counterpoint.train.evals.channels import Rate
from counterpoint.train.evals.charts import CHANNELS, Figure, figures_of, interval
from counterpoint.train.evals.drawing import css, svg_in_page
from counterpoint.train.evals.findings import Findings, Measured, findings_of
from counterpoint.train.evals.page_samples import samples_of
from counterpoint.train.evals.report_data import BASE, Report
from counterpoint.train.evals.results import Cell


@dataclass(frozen=True, slots=True)
class _Rates:
    """A row of a table: one rate for each side. code: a rule's, or empty."""

    name: str
    code: str
    rates: Sequence[Rate]


def page_of(report: Report, vocabulary: Vocabulary | None = None, findings: Findings | None = None) -> str:
    """The page. findings: `findings_of(report)`, where computed already."""
    found = findings or findings_of(report)
    sides = list(found.sides.values())
    efforts = [e for m in sides for e in m.numbers.efforts.values()]
    drawn = figures_of(report, found)
    return render_page(
        "train/evals/report_page.html",
        figures=css(),
        title=f"{report.title}: evaluation",
        report=report,
        found=found,
        sides=sides,
        labels=[m.label for m in sides],
        before=found.sides[BASE] if len(sides) == 2 else None,
        drawn=_drawn(drawn),
        card="card" in "".join(f.drawing.told for f in drawn if f.section == "accuracy"),
        efforts=EFFORTS,
        steps=[(m.label, step) for m in sides for step in m.advice.steps],
        longest=max(e.analysis_tokens + e.final_tokens for e in efforts) or 1.0,
        violations=_violations(sides),
        calls=_tool_calls(sides),
        skills=_skills(found),
        tasks=list(_tasks(sides)),
        samples=samples_of(report, vocabulary or load_vocabulary()),
        channels=CHANNELS,
        interval=interval,
        two=two,
    )


def two(rate: Rate) -> str:
    """`0.93`, or a dash where nothing was measured."""
    return "–" if rate.share is None else f"{rate.share:.2f}"


def _drawn(figures: Iterable[Figure]) -> dict[str, list[tuple[str, str]]]:
    """(caption, SVG) of the figures of each section."""
    sections: dict[str, list[tuple[str, str]]] = {"verdict": [], "accuracy": [], "steps": []}
    for figure in figures:
        sections[figure.section].append((figure.caption, svg_in_page(figure.drawing)))
    return sections


def _broken(sides: Sequence[Measured], code: str) -> list[Rate]:
    """Samples that break a rule, a rate for each side."""
    return [m.numbers.violations.get(code, Rate(0, m.numbers.n)) for m in sides]


def _violations(sides: Sequence[Measured]) -> list[_Rates]:
    """What the shown side breaks most first."""
    codes = {code for measured in sides for code in measured.numbers.violations}
    rows = [_Rates(CODES.get(code, ""), code, _broken(sides, code)) for code in codes]
    return sorted(rows, key=lambda row: ([-rate.count for rate in reversed(row.rates)], row.code))


def _tool_calls(sides: Sequence[Measured]) -> list[_Rates]:
    """Empty where no call was expected and none made."""
    if not any(m.numbers.calls.n or m.numbers.valid_calls.n for m in sides):
        return []
    faults = sorted({code for m in sides for code in m.numbers.violations} & TOOL_CODES)
    return [
        _Rates("expected calls made, tool and arguments", "", [m.numbers.calls for m in sides]),
        _Rates("the right tool, whatever the arguments", "", [m.numbers.right_tool for m in sides]),
        _Rates("no fault, of samples with a call", "", [m.numbers.valid_calls for m in sides]),
        *(_Rates("", code, _broken(sides, code)) for code in faults),
    ]


def _skills(found: Findings) -> list[Any]:
    """Of the probes, the worst verdict first."""
    skills = found.guard.skills if found.guard is not None else ()
    return sorted(skills, key=lambda skill: ("lost", "weaker", "gained", "kept").index(skill.verdict))


def _tasks(sides: Sequence[Measured]) -> Iterable[tuple[Cell, str]]:
    """A cell and the label of its side for each task, effort and side."""
    keys = dict.fromkeys((cell.task, cell.effort) for m in sides for cell in m.tasks)
    for key in keys:
        for measured in sides:
            yield from ((cell, measured.label) for cell in measured.tasks if (cell.task, cell.effort) == key)
