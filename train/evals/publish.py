"""A report on disk: the page, its numbers, and its figures as files for a paper or a slide."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.train.evals.charts import figures_of
from counterpoint.train.evals.drawing import png_file, svg_file
from counterpoint.train.evals.findings import Findings, findings_of
from counterpoint.train.evals.report_data import Report
from counterpoint.train.evals.report_page import page_of
from counterpoint.train.run.folder import write_whole

PAGE, NUMBERS, FIGURES = "report.html", "report.json", "figures"


def write_report(folder: Path, report: Report, vocabulary: Vocabulary | None = None) -> Findings:
    """`report.html`, `report.json` and `figures/*.svg` in `folder`; `*.png` as well where Pillow is installed."""
    findings = findings_of(report)
    write_whole(folder / PAGE, page_of(report, vocabulary, findings))
    numbers = {
        "title": report.title,
        "facts": dict(report.facts),
        "notes": list(report.notes),
        **findings.as_dict(),
        "points": [dict(point) for point in report.points],
    }
    write_whole(folder / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False, default=str) + "\n")
    (folder / FIGURES).mkdir(exist_ok=True)
    for figure in figures_of(report, findings):
        place = folder / FIGURES / figure.name
        write_whole(place.with_suffix(".svg"), svg_file(figure.drawing))
        if find_spec("PIL") is not None:
            place.with_suffix(".png").write_bytes(png_file(figure.drawing))
    return findings
