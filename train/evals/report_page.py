"""A report as one self-contained HTML page without scripts, from `report_page.html` next to this file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.harmony.vocabulary import Vocabulary, load_vocabulary
from counterpoint.data.pages.templates import render_page
from counterpoint.train.evals import page_tables
from counterpoint.train.evals.channels import Rate
from counterpoint.train.evals.charts import CHANNELS, Figure, figures_of, interval
from counterpoint.train.evals.drawing import css, svg_in_page
from counterpoint.train.evals.findings import Findings, findings_of
from counterpoint.train.evals.page_samples import samples_of
from counterpoint.train.evals.report_data import BASE, Report


def page_of(report: Report, vocabulary: Vocabulary | None = None, findings: Findings | None = None) -> str:
    """The page. findings: `findings_of(report)`, where computed already."""
    found = findings or findings_of(report)
    sides = list(found.sides.values())
    efforts = [e for m in sides for e in m.numbers.efforts.values()]
    drawn, cells = figures_of(report, found), page_tables.tasks(sides)
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
        violations=page_tables.violations(sides),
        calls=page_tables.tool_calls(sides),
        skills=_skills(found),
        tasks=cells,
        passes=page_tables.passes(cells),
        rollouts=[(cell, label) for cell, label in cells if cell.rollouts is not None],
        rewards=page_tables.rewards(sides),
        languages=page_tables.languages(found),
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


def _skills(found: Findings) -> list[Any]:
    """Of the probes, the worst verdict first."""
    skills = found.guard.skills if found.guard is not None else ()
    return sorted(skills, key=lambda skill: ("lost", "weaker", "gained", "kept").index(skill.verdict))
