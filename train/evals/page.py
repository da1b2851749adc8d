"""A report as one HTML page that needs nothing else: no script, no request, every text escaped and made visible."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.harmony.check import read
from counterpoint.data.harmony.codes import CODES
from counterpoint.data.harmony.vocabulary import Vocabulary, load_vocabulary
from counterpoint.data.visible import Pieces, visible, visible_line
from counterpoint.train.evals.channels import Rate
from counterpoint.train.evals.figures import Pair, Series, dumbbells, lines
from counterpoint.train.evals.report import Numbers, Report, Row, codes_of, is_correct, verdict

MAX_EXAMPLES = 16
MAX_TOKENS = 600
_CHANNELS = ("analysis", "commentary", "final")
_RATES: dict[str, Callable[[Numbers], Rate]] = {
    "channel-correct": lambda n: n.correct,
    "right answers": lambda n: n.answers,
    "expected calls made": lambda n: n.calls,
    "calls without a fault": lambda n: n.valid_calls,
    "with analysis": lambda n: n.with_analysis,
}
_CURVES = {"channel-correct": "channel_correct", "right calls": "right_calls", "right answers": "right_answers"}


def page_of(report: Report, vocabulary: Vocabulary | None = None) -> str:
    """The page."""
    style = resources.files("counterpoint.train.evals").joinpath("report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        _top(report),
        _verdict(report),
        _curves(report),
        _violations(report),
        _efforts(report),
        _examples(report, vocabulary or load_vocabulary()),
        _foot(report),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_line(report.title)}: evaluation</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _top(report: Report) -> str:
    facts = "".join(f"<div><dt>{_line(name)}</dt><dd>{_line(value)}</dd></div>" for name, value in report.facts)
    title = f'<p class="kind">Evaluation</p><h1>{_line(report.title)}</h1>'
    return f'<header>{title}<dl class="facts">{facts}</dl></header>'


def _verdict(report: Report) -> str:
    base, tuned = report.base and report.base.numbers, report.tuned and report.tuned.numbers
    before = f'<span class="was">{_two(base.correct)}</span><span class="to">→</span>' if base and tuned else ""
    name = "base and tuned model" if base and tuned else f"{report.shown.label} model"
    of = f'<span class="of">channel-correct, {_line(name)}</span>'
    big = f'<p class="big">{before}<strong>{_two(report.shown.numbers.correct)}</strong>{of}</p>'
    told = [_paragraph(s, "bad" if s.startswith(("Worse", "More effort")) else "") for s in verdict(report)]
    pairs = [Pair(name, _ends(base, rate), _ends(tuned, rate)) for name, rate in _RATES.items()]
    figure = dumbbells([pair for pair in pairs if pair.base or pair.tuned])
    keys = {"base": '<span class="ring"></span> base', "tuned": '<span class="disc"></span> tuned'}
    there = " ".join(keys[who] for who, numbers in (("base", base), ("tuned", tuned)) if numbers)
    key = f'<p class="key">{there}, with 95 % intervals</p>'
    return _section("Verdict", big, *told, figure, key, kind="verdict")


def _curves(report: Report) -> str:
    steps: dict[float, Mapping[str, Any]] = {}
    for point in report.points:
        if point.get("channel_correct") is not None and (point["who"] == "tuned" or point["step"] not in steps):
            steps[point["step"]] = point
    out = ""
    if len(steps) > 1:
        n, series = report.shown.numbers.n, []
        for name, key in _CURVES.items():
            values = [(step, float(p[key])) for step, p in sorted(steps.items()) if p.get(key) is not None]
            band = (
                [(step, *_interval(Rate(round(v * n), n))) for step, v in values] if name == "channel-correct" else []
            )
            series.append(Series(name, values, band))
        out += _figure("Rates of sampled prompts, by step", lines(series, "step", "rate", (0.0, 1.0)))
    losses = [
        Series(name, [(float(p["step"]), float(p[key])) for p in report.losses if p.get(key) is not None])
        for name, key in (*((channel, f"loss_{channel}") for channel in _CHANNELS), ("all channels", "loss"))
    ]
    if any(len(s.points) > 1 for s in losses):
        out += _figure("Training loss, whole and by channel", lines(losses, "step", "loss"))
    return _section("On the way", f'<div class="figures">{out}</div>') if out else ""


def _violations(report: Report) -> str:
    sides = _sides(report)
    codes = sorted(
        {code for _, numbers in sides for code in numbers.violations},
        key=lambda code: [-n.violations.get(code, Rate(0, n.n)).count for _, n in reversed(sides)],
    )
    if not codes:
        return _section("Violations", _paragraph("None, in any sample."))
    rows = ""
    for code in codes:
        cells = "".join(_rate_cell(numbers.violations.get(code, Rate(0, numbers.n))) for _, numbers in sides)
        rows += f'<tr><th scope="row"><code>{_line(code)}</code></th><td>{_line(CODES.get(code, ""))}</td>{cells}</tr>'
    told = "Share of samples that break a rule, with its 95 % interval; a sample may break several."
    return _section(
        "Violations", _paragraph(told), _table(("rule", "what it means"), [name for name, _ in sides], rows)
    )


def _efforts(report: Report) -> str:
    sides = _sides(report)
    most = max(e.analysis_tokens + e.final_tokens for _, n in sides for e in n.efforts.values()) or 1.0
    rows = ""
    for effort in EFFORTS:
        for label, numbers in sides:
            e = numbers.efforts.get(effort)
            if e is None:
                continue
            shown = (f"{e.analysis_tokens:.1f}", f"{e.final_tokens:.1f}")
            shown += (_two(e.with_analysis), _two(e.correct), _two(e.right))
            cells = "".join(f'<td class="n">{number}</td>' for number in shown)
            bar = f'<td class="b">{_bar(e.analysis_tokens / most, e.final_tokens / most)}</td>'
            rows += f'<tr><th scope="row">{effort}</th><td>{_line(label)}</td>{bar}{cells}</tr>'
    told = (
        'Mean tokens of a sample in <span class="tag analysis">analysis</span> and <span class="tag final">final</span>'
    )
    table = _table(("effort", "model", ""), ("analysis", "final", "thinks", "channel-correct", "right"), rows)
    return _section("By reasoning effort", f"<p>{told}, and rates.</p>", table)


def _examples(report: Report, vocabulary: Vocabulary) -> str:
    shown = report.shown
    other = {_key(row): row for row in report.base.rows} if report.base and report.tuned else {}
    failing = [row for row in shown.rows if not is_correct(row) or row["score"] not in (None, 1)]
    failing.sort(key=is_correct)
    cured = [row for row in shown.rows if _key(row) in other and not is_correct(other[_key(row)])]
    rest = [row for row in _varied(cured) if row not in failing] or list(shown.rows)
    chosen = (
        (_varied(failing) + rest)[:MAX_EXAMPLES] if len(failing) < MAX_EXAMPLES else _varied(failing)[:MAX_EXAMPLES]
    )
    pieces = Pieces(vocabulary)
    drawn = "".join(_example(row, other.get(_key(row)), shown.label, pieces) for row in chosen)
    key = " ".join(f'<span class="tag {channel}">{channel}</span>' for channel in _CHANNELS)
    told = (
        f"{len(failing)} of {len(shown.rows)} samples of the {_line(shown.label)} model break a rule or are not right."
    )
    told += f" Raw tokens by channel: {key}. A fault is marked where it was found."
    return _section("Samples", f"<p>{told}</p>", drawn)


def _varied(rows: Sequence[Row]) -> list[Row]:
    """The same rows, one of each prompt first, then the second of each."""
    seen: dict[str, int] = {}
    order = []
    for i, row in enumerate(rows):
        seen[row["id"]] = seen.get(row["id"], 0) + 1
        order.append((seen[row["id"]], i))
    return [rows[i] for _, i in sorted(order)]


def _example(row: Row, before: Row | None, label: str, pieces: Pieces) -> str:
    head = f"{_line(row['id'])} · effort {_line(row['effort'])}"
    asked = f'<p class="asked">{_text(row["asked"])}</p>' if row.get("asked") else ""
    first = _side("base", before, pieces) if before is not None else ""
    return f"<article><h3>{head}</h3>{asked}{first}{_side(label, row, pieces)}</article>"


def _side(label: str, row: Row, pieces: Pieces) -> str:
    faults = "".join(
        f"<li><code>{_line(v['code'])}</code> {_line(CODES.get(v['code'], ''))}: {_line(v['detail'])}</li>"
        for v in row["violations"]
    )
    state = "right on every channel" if is_correct(row) else ", ".join(sorted(codes_of(row)))
    scored = "" if row["outcome"] is None else f", {_line(row['scorer'])}: {_line(row['outcome'])}"
    kind = "ok" if is_correct(row) else "bad"
    faults = f'<ul class="faults">{faults}</ul>' if faults else ""
    who = f'<p class="who"><b>{_line(label)}</b> <span class="{kind}">{_line(state)}</span>{scored}</p>'
    return f'<div class="side">{who}<div class="raw">{_tokens(row, pieces)}</div>{faults}</div>'


def _tokens(row: Row, pieces: Pieces) -> str:
    """The raw tokens, runs of one channel in one element, control tokens as chips, tokens with a fault marked."""
    ids = list(row["ids"])[:MAX_TOKENS]
    channel_of: list[str] = []
    for span in read(ids).spans:
        name = span.header.channel if span.header.channel in _CHANNELS else ""
        channel_of += [name or ""] * (min(span.body_end + 1, len(ids)) - len(channel_of))
    channel_of += [""] * (len(ids) - len(channel_of))
    faults = {v["position"] for v in row["violations"]}
    out: list[str] = []
    opened, at = None, 0
    for piece in pieces.of(ids):
        channel = channel_of[at]
        marked = any(at <= position < at + len(piece.ids) for position in faults)
        at += len(piece.ids)
        if channel != opened:
            out.append(("</span>" if opened is not None else "") + f'<span class="t {channel}">')
            opened = channel
        text = html.escape(piece.text)
        shown = f'<span class="special">{text}</span>' if piece.special else text
        out.append(f"<mark>{shown}</mark>" if marked else shown)
    rest = len(row["ids"]) - len(ids)
    return "".join(out) + ("</span>" if opened is not None else "") + (f"<i>… {rest} more tokens</i>" if rest else "")


def _foot(report: Report) -> str:
    n = report.shown.numbers
    notes = "".join(_paragraph(note) for note in report.notes)
    how = (
        f"{n.n} samples of {n.items} prompts, drawn token by token and checked on token ids. A sample is "
        "channel-correct when it breaks no rule. Intervals are Wilson's, for independent samples. A sample that was "
        "cut, or whose answer stands in the analysis alone, is not right; nothing is drawn again."
    )
    return f"<footer>{notes}<p>{how}</p></footer>"


def _section(heading: str, *parts: str, kind: str = "") -> str:
    opened = f'<section class="{kind}">' if kind else "<section>"
    return f"{opened}<h2>{heading}</h2>{''.join(parts)}</section>"


def _figure(caption: str, drawn: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{drawn}</figure>"


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{_line(text)}</p>' if kind else f"<p>{_line(text)}</p>"


def _table(texts: Sequence[str], numbers: Sequence[str], rows: str) -> str:
    """A table whose first columns are texts and whose last are numbers."""
    head = "".join(f'<th scope="col">{_line(name)}</th>' for name in texts)
    head += "".join(f'<th scope="col" class="n">{_line(name)}</th>' for name in numbers)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _sides(report: Report) -> list[tuple[str, Numbers]]:
    return [(side.label, side.numbers) for side in (report.base, report.tuned) if side is not None]


def _key(row: Row) -> tuple[Any, ...]:
    return row["task"], row["id"], row["effort"], row["sample"]


def _ends(numbers: Numbers | None, rate: Callable[[Numbers], Rate]) -> tuple[float, float, float] | None:
    """(rate, low, high); None where nothing was measured."""
    found = None if numbers is None else rate(numbers)
    return None if found is None or found.share is None else (found.share, *_interval(found))


def _interval(rate: Rate) -> tuple[float, float]:
    values = rate.as_dict()
    return values["low"], values["high"]


def _rate_cell(rate: Rate) -> str:
    low, high = _interval(rate)
    return f'<td class="n">{_two(rate)} <small>{low:.2f}–{high:.2f}</small></td>'


def _bar(analysis: float, final: float) -> str:
    """Two shares of the whole width, one behind the other."""
    first = 100 * analysis
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="analysis" width="{first:.2f}" height="10"/>'
        f'<rect class="final" x="{first:.2f}" width="{100 * final:.2f}" height="10"/></svg>'
    )


def _two(rate: Rate) -> str:
    return "–" if rate.share is None else f"{rate.share:.2f}"


def _line(text: Any) -> str:
    return html.escape(visible_line(str(text), 400))


def _text(text: Any) -> str:
    return html.escape(visible(str(text))[:4000])
