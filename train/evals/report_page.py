"""A report as one HTML page that needs nothing else: no script, no request, every text escaped and made visible."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.harmony.codes import CODES, TOOL_CODES
from counterpoint.data.harmony.vocabulary import Vocabulary, load_vocabulary
from counterpoint.train.evals.channels import Rate
from counterpoint.train.evals.charts import Figure, figures_of
from counterpoint.train.evals.drawing import css, svg_in_page
from counterpoint.train.evals.findings import Findings, findings_of
from counterpoint.train.evals.page_parts import bar, figure, line, paragraph, row, section, table, two, with_interval
from counterpoint.train.evals.page_samples import samples_section
from counterpoint.train.evals.report_data import BASE, TUNED, Numbers, Report
from counterpoint.train.evals.results import Cell
from counterpoint.train.evals.retention_probes import Tilt


def page_of(report: Report, vocabulary: Vocabulary | None = None, findings: Findings | None = None) -> str:
    """The page. findings: `findings_of(report)`, where they are known already."""
    found = findings or findings_of(report)
    figures = figures_of(report, found)
    style = resources.files("counterpoint.train.evals").joinpath("report.css").read_text(encoding="utf-8") + css()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        _top(report),
        _verdict(found, figures),
        _effort(found, figures),
        _violations(found),
        _tool_calls(found),
        _guard(found),
        _tasks(found),
        _curves(figures),
        samples_section(report, vocabulary or load_vocabulary()),
        _foot(report, found),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{line(report.title)}: evaluation</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _top(report: Report) -> str:
    facts = "".join(f"<div><dt>{line(name)}</dt><dd>{line(value)}</dd></div>" for name, value in report.facts)
    title = f'<p class="kind">Evaluation</p><h1>{line(report.title)}</h1>'
    return f'<header>{title}<dl class="facts">{facts}</dl></header>'


def _verdict(found: Findings, figures: list[Figure]) -> str:
    both = len(found.sides) == 2
    before = two(found.sides[BASE].numbers.correct) if both else ""
    before = f'<span class="was">{before}</span><span class="to">→</span>' if both else ""
    name = f"base and {found.shown.label} model" if both else f"{found.shown.label} model"
    of = f'<span class="of">channel-correct, {line(name)}</span>'
    big = f'<p class="big">{before}<strong>{two(found.shown.numbers.correct)}</strong>{of}</p>'
    said = [paragraph(said.text, "bad" if said.bad else "") for said in found.verdict]
    drawn = "".join(svg_in_page(f.drawing) for f in figures if f.section == "verdict")
    return section("Verdict", big, *said, drawn, _key(found), kind="verdict")


def _key(found: Findings) -> str:
    keys = {BASE: '<span class="ring"></span>', TUNED: '<span class="disc"></span>'}
    there = " ".join(f"{keys[who]} {line(measured.label)}" for who, measured in found.sides.items())
    return f'<p class="key">{there}, with 95 % intervals</p>'


def _effort(found: Findings, figures: list[Figure]) -> str:
    """Accuracy against the length of the chain of thought, which effort to use, and tokens and rates by effort."""
    drawn = [figure(f.caption, svg_in_page(f.drawing)) for f in figures if f.section == "accuracy"]
    parts: list[str] = []
    if drawn:
        told = "Accuracy against the length of the chain of thought, one point an effort, with 95 % intervals"
        band = "; shaded: the model card's figures, as far as others' measurements lie from them." * any(
            "card" in f.drawing.told for f in figures if f.section == "accuracy"
        )
        parts += [paragraph(f"{told}{band or '.'}"), *drawn, _key(found)]
    if sentences := found.shown.advice.sentences:
        parts += ["<h3>Which effort to use</h3>", *map(paragraph, dict.fromkeys(sentences.values()))]
        parts.append(_steps(found))
    return section("Accuracy and reasoning effort", *parts, _lengths(found))


def _steps(found: Findings) -> str:
    """What each step of effort gains and costs."""
    rows = ""
    for measured in found.sides.values():
        for step in measured.advice.steps:
            seconds = "–" if step.seconds is None else f"{step.seconds:+.2g}"
            told = "yes" if step.told else "not on these items"
            numbers = (f"{100 * step.gained:+.0f}", f"{step.tokens:+,.0f}", seconds)
            rows += row(f"{step.start} → {step.stop}", [line(measured.label), told], numbers)
    if not rows:
        return ""
    return table(("step", "model", "told apart"), ("points gained", "tokens a sample", "seconds a sample"), rows)


def _lengths(found: Findings) -> str:
    efforts = [e for m in found.sides.values() for e in m.numbers.efforts.values()]
    most = max(e.analysis_tokens + e.final_tokens for e in efforts) or 1.0
    rows = ""
    for effort in EFFORTS:
        for measured in found.sides.values():
            e = measured.numbers.efforts.get(effort)
            if e is None:
                continue
            numbers = (f"{e.analysis_tokens:.1f}", f"{e.final_tokens:.1f}", two(e.with_analysis), two(e.correct))
            drawn = bar(e.analysis_tokens / most, e.final_tokens / most)
            rows += row(effort, [line(measured.label), drawn], [*numbers, two(e.right)])
    told = (
        'Mean tokens of a sample in <span class="tag analysis">analysis</span> and <span class="tag final">final</span>'
    )
    drawn = table(("effort", "model", ""), ("analysis", "final", "thinks", "channel-correct", "right"), rows)
    return f'<p>{told}, and rates.</p><div class="lengths">{drawn}</div>'


def _violations(found: Findings) -> str:
    sides = list(found.sides.values())
    codes = {code for measured in sides for code in measured.numbers.violations}
    if not codes:
        return section("Violations", paragraph("None, in any sample."))

    def of(numbers: Numbers, code: str) -> Rate:
        return numbers.violations.get(code, Rate(0, numbers.n))

    ordered = sorted(codes, key=lambda code: ([-of(m.numbers, code).count for m in reversed(sides)], code))
    rows = "".join(
        row(f"<code>{line(c)}</code>", [line(CODES.get(c, ""))], [with_interval(of(m.numbers, c)) for m in sides])
        for c in ordered
    )
    told = "Share of samples that break a rule, with its 95 % interval; a sample may break several."
    return section("Violations", paragraph(told), table(("rule", "what it means"), [m.label for m in sides], rows))


def _tool_calls(found: Findings) -> str:
    sides = list(found.sides.values())
    if not any(m.numbers.calls.n or m.numbers.valid_calls.n for m in sides):
        return ""
    what: list[tuple[str, list[Rate]]] = [
        ("expected calls made, tool and arguments", [m.numbers.calls for m in sides]),
        ("the right tool, whatever the arguments", [m.numbers.right_tool for m in sides]),
        ("no fault, of samples with a call", [m.numbers.valid_calls for m in sides]),
    ]
    faults = sorted({code for m in sides for code in m.numbers.violations} & TOOL_CODES)
    rows = "".join(row(line(name), [], [with_interval(rate) for rate in rates]) for name, rates in what)
    rows += "".join(
        row(
            f"<code>{line(code)}</code>",
            [],
            [with_interval(m.numbers.violations.get(code, Rate(0, m.numbers.n))) for m in sides],
        )
        for code in faults
    )
    return section("Tool calls", table(("samples",), [m.label for m in sides], rows))


def _guard(found: Findings) -> str:
    if found.guard is None:
        return ""
    parts: list[str] = []
    if found.guard.skills:
        rows = "".join(
            row(line(s.name), [s.what, f'<span class="{s.verdict}">{s.verdict}</span>'],
                [with_interval(s.base), with_interval(s.tuned)])
            for s in sorted(found.guard.skills, key=lambda s: ("lost", "weaker", "gained", "kept").index(s.verdict))
        )  # fmt: skip
        told = (
            "Skills before and after. Lost: the intervals do not meet. Weaker: 20 points or more, which may be chance."
        )
        parts += [paragraph(told), table(("skill", "what", "verdict"), ("before", "after"), rows)]
    if found.guard.tilts:
        rows = "".join(
            row(line(t.attribute), ['<span class="lost">tilted</span>' if t.worse else "no new tilt"],
                [str(t.tuned.pairs), *map(with_interval, (t.base.changed, t.tuned.changed, t.tuned.by_chance)),
                 _favour(t.base), _favour(t.tuned)])
            for t in found.guard.tilts
        )  # fmt: skip
        told = (
            "Pairs of prompts that differ in one attribute of a person: how often the answer changes, how often it "
            "changes between two samples of one prompt, and the mean difference in favour of the second of a pair."
        )
        numbers = ("pairs", "changed before", "after", "by chance", "favour before", "after")
        parts += [paragraph(told), table(("attribute", "verdict"), numbers, rows)]
    return section("What was forgotten, what is tilted", *parts)


def _favour(tilt: Tilt) -> str:
    if tilt.tilt is None:
        return "–"
    error = tilt.tilt.standard_error
    return f"{tilt.tilt.value:+.2f}" + (f" <small>± {error:.2f}</small>" if error == error else "")


def _tasks(found: Findings) -> str:
    """A row for each task, effort and side."""
    keys = dict.fromkeys((cell.task, cell.effort) for m in found.sides.values() for cell in m.tasks)
    rows = ""
    for task, effort in keys:
        for measured in found.sides.values():
            for cell in measured.tasks:
                if (cell.task, cell.effort) == (task, effort):
                    rows += row(line(task or "prompts"), [effort, line(measured.label)], _task_numbers(cell))
    told = (
        "Mean score with its standard error, clustered by item; pass@k: one of k samples is wholly right. Cut and "
        "failed samples (the scorer raised, hung or gave no number) count as 0."
    )
    names = ("items", "samples", "mean score", "pass@1", "pass@k", "channel-correct", "cut", "failed", "tokens", "s")
    return section("Tasks", paragraph(told), table(("task", "effort", "model"), names, rows))


def _task_numbers(cell: Cell) -> list[str]:
    mean, most = cell.mean_at_k, max(cell.pass_at, default=1)
    error = f" <small>± {mean.standard_error:.2f}</small>" if mean and mean.standard_error > 0 else ""
    return [
        str(cell.items),
        str(cell.samples),
        f"{mean.value:.2f}{error}" if mean else "–",
        f"{cell.pass_at[1].value:.2f}" if cell.pass_at else "–",
        f"{cell.pass_at[most].value:.2f} <small>k={most}</small>" if most > 1 else "–",
        two(cell.correct),
        str(cell.truncated),
        str(cell.failed),
        f"{cell.tokens:.0f}",
        "–" if cell.seconds is None else f"{cell.seconds:.2g}",
    ]


def _curves(figures: list[Figure]) -> str:
    drawn = "".join(figure(f.caption, svg_in_page(f.drawing)) for f in figures if f.section == "steps")
    return section("On the way", f'<div class="figures">{drawn}</div>') if drawn else ""


def _foot(report: Report, found: Findings) -> str:
    n = found.shown.numbers
    notes = "".join(map(paragraph, report.notes))
    how = (
        f"{n.n} samples of {n.items} prompts, drawn token by token and checked on token ids. A sample is "
        "channel-correct when it breaks no rule. Intervals of rates are Wilson's, for independent samples; those of "
        "accuracies and differences are Student's, clustered by item. A sample that was cut, or whose answer stands in "
        "the analysis alone, is not right; nothing is drawn again."
    )
    return f"<footer>{notes}<p>{how}</p></footer>"
