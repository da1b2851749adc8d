"""The statistics of prepared data as one self-contained HTML page: no script, no request, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.counts.row_statistics import SAMPLED_EVERY, SAMPLED_WHOLE
from counterpoint.data.harmony.render import CHANNEL_NAMES
from counterpoint.data.pages.visible import visible_line
from counterpoint.data.prepared.cache import Fingerprint

_MANY = 40
_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --ground: #ffffff;
  --card: #f6f8fa; --bar: #2a6fb8; --analysis: #8250df; --commentary: #9a5b00; --final: #1a7f37; --context: #6e7781;
  --warn: #b42318; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9aa4af; --line: #30363d; --ground: #0d1117;
  --card: #161b22; --bar: #58a6ff; --analysis: #bc8cff; --commentary: #e3a33c; --final: #56d364; --context: #8b949e;
  --warn: #ff8a80; } }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft { color: var(--soft); } .warn { color: var(--warn); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .6rem; margin: 1rem 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .5rem .75rem; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
th, td { text-align: left; padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: .85rem; } td { overflow-wrap: anywhere; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } .b { width: 30%; min-width: 6rem; }
svg { display: block; width: 100%; } .bar { height: .7rem; } .bar rect, .bins rect { fill: var(--bar); }
.bins text { fill: var(--soft); font-size: 12px; } .bins line { stroke: var(--line); }
.context rect { fill: var(--context); } .analysis rect { fill: var(--analysis); }
.commentary rect { fill: var(--commentary); } .final rect { fill: var(--final); }
code { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere; }
li { overflow-wrap: anywhere; }
"""


def statistics_page(
    report: RowCounter, statistics: Mapping[str, Any], fingerprint: Fingerprint, sources: Sequence[str]
) -> str:
    """The page for `report` and `RowStatistics.as_dict`. Rows, channels, tools, scripts, and what was left out."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = "\n".join(
        [
            "<h1>Prepared data</h1>",
            f'<p class="soft">{_text(", ".join(sources))}</p>',
            _numbers(report, statistics),
            _lengths(statistics["lengths"]),
            _channels(report, statistics["tokens"]),
            _rows_by("Reasoning effort", "effort", report.efforts, report.n_good),
            _rows_by("Assistant turns trained per source row", "examples", statistics["turns"], statistics["rows"]),
            _tools(statistics),
            _characters(statistics),
            _left_out(report, statistics),
            _rows_by("Formats", "format", report.formats, report.n_good),
            _made_from(fingerprint),
        ]
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Prepared data: statistics</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _numbers(report: RowCounter, statistics: Mapping[str, Any]) -> str:
    trained = report.trained.total()
    repeated = f"{statistics['duplicates']:,}" + (" (estimated)" if statistics["duplicates_estimated"] else "")
    facts = [
        ("rows read", f"{report.rows:,}"),
        ("training examples", f"{report.examples:,}"),
        ("tokens", f"{report.tokens:,}"),
        ("tokens where turns share a row", f"{report.row_tokens:,} ({_share(report.row_tokens, report.tokens)})"),
        ("trained tokens", f"{trained:,} ({_share(trained, report.tokens)})"),
        ("turns without thinking", f"{report.without_thinking:,} of {report.turns:,}"),
        ("repeated rows", repeated),
        ("too long, left out", f"{report.too_long:,}"),
        ("rows set aside", f"{report.n_bad:,}"),
    ]
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts) + "</dl>"


def _lengths(lengths: Mapping[str, Any]) -> str:
    bins = lengths["histogram"]
    top = max((b["examples"] for b in bins), default=1)
    width, height, left, base = 900, 220, 60, 180
    step = (width - left) / max(1, len(bins))
    parts = [f'<line x1="{left}" y1="{base}" x2="{width}" y2="{base}"/>', f'<text x="0" y="20">{top:,}</text>']
    every = 1 + len(bins) // 12
    for n, b in enumerate(bins):
        tall = 165 * b["examples"] / top
        x = left + n * step
        title = f"<title>{b['from']:,} to {b['to']:,} tokens: {b['examples']:,} examples</title>"
        parts.append(
            f'<rect x="{x + 1:.1f}" y="{base - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}">{title}</rect>'
        )
        if n % every == 0:
            parts.append(f'<text x="{x:.1f}" y="{base + 18}">{b["from"]:,}</text>')
    text = (
        f"Half of the examples have at most {lengths['median']:,} tokens, 95% at most {lengths['p95']:,}; "
        f"the longest has {lengths['max']:,}, the mean is {lengths['mean']:,}."
    )
    chart = f'<svg class="bins" viewBox="0 0 {width} {height}" role="img" aria-label="Histogram. {text}">'
    caption = '<text x="60" y="215">tokens of an example (bins grow by a factor of 1.4)</text>'
    return f'<h2>Lengths</h2><p>{text}</p><div class="wide">{chart}{"".join(parts)}{caption}</svg></div>'


def _channels(report: RowCounter, tokens: Mapping[str, int]) -> str:
    rows = []
    for name in CHANNEL_NAMES:
        trained = report.trained.get(name, 0)
        cells = [_cell(name), _number(tokens.get(name, 0)), _number(trained)]
        rows.append(
            [
                *cells,
                _number(_share(tokens.get(name, 0), report.tokens)),
                _bar(tokens.get(name, 0), report.tokens, name),
            ]
        )
    note = "Context is what the model reads: prompts, earlier turns, tool results. The channels are the model's own."
    table = _table(["channel", "#tokens", "#trained", "#share of all", ""], rows)
    return f'<h2>Tokens by channel</h2><p class="soft">{note}</p>{table}'


def _rows_by(title: str, column: str, counts: Mapping[str, int], total: int) -> str:
    rows = [[_cell(k), _number(n), _number(_share(n, total)), _bar(n, total)] for k, n in list(counts.items())[:_MANY]]
    return f"<h2>{title}</h2>{_table([column, '#rows', '#share', ''], rows)}" if rows else ""


def _tools(statistics: Mapping[str, Any]) -> str:
    called, declared = statistics["tools_called"], statistics["tools_declared"]
    names = sorted(
        called.keys() | declared.keys(), key=lambda name: (-called.get(name, 0), -declared.get(name, 0), name)
    )
    if not names:
        return "<h2>Tools</h2><p>No row declares or calls a tool.</p>"
    rows = [
        [
            _cell(name),
            _number(declared.get(name, 0)),
            _number(called.get(name, 0)),
            _bar(called.get(name, 0), statistics["rows"]),
        ]
        for name in names[:_MANY]
    ]
    more = f'<p class="soft">{len(names) - _MANY:,} more are in statistics.json.</p>' if len(names) > _MANY else ""
    return f"<h2>Tools</h2>{_table(['tool', '#rows that declare it', '#rows that call it', ''], rows)}{more}"


def _characters(statistics: Mapping[str, Any]) -> str:
    kinds, n_rows = statistics["characters"], statistics["characters_rows"]
    total = sum(kind["characters"] for kind in kinds)
    highest = max((kind["tokens_per_character"] for kind in kinds), default=1)
    rows = [
        [
            _cell(kind["kind"]),
            _number(_share(kind["characters"], total)),
            _number(_share(kind["rows"], n_rows)),
            _number(f"{kind['tokens_per_character']:.2f}"),
            _bar(kind["tokens_per_character"], highest),
        ]
        for kind in kinds
    ]
    note = (
        "What the tokenizer makes of the texts: letters by script, numbers, emoji, and fenced code as a whole. "
        "The more tokens a character, the shorter the texts that fit; a token's cost is spread over its bytes."
    )
    if n_rows < statistics["rows"]:
        note += (
            f" Measured on a sample: {n_rows:,} of {statistics['rows']:,} rows "
            f"(the first {SAMPLED_WHOLE:,}, then every {SAMPLED_EVERY}th)."
        )
    head = ["kind", "#share of characters", "#rows with it", "#tokens per character", ""]
    return f'<h2>Languages, scripts and code</h2><p class="soft">{note}</p>{_table(head, rows)}'


def _left_out(report: RowCounter, statistics: Mapping[str, Any]) -> str:
    parts = ["<h2>Set aside, left out, changed</h2>"]
    facts = [
        (report.too_long, "examples longer than data.max_tokens, left out; none was cut"),
        (report.prompts, "rows without an assistant turn to train"),
        (statistics["duplicates"], "rows that give the same tokens as an earlier one"),
        (report.without_thinking, "assistant turns without thinking: see data.missing_thinking"),
    ]
    parts += [f'<p class="warn">{count:,}: {what}</p>' for count, what in facts if count]
    bad = [[_cell(kind), _number(n)] for kind, n in report.bad.most_common()]
    if bad:
        parts.append(_table(["why a row was set aside", "#rows"], bad))
        parts.append("<ul>" + "".join(f"<li><code>{_text(m)}</code></li>" for m in report.bad_messages) + "</ul>")
    notices = [[_cell(kind), _number(n)] for kind, n in report.notices.most_common()]
    if notices:
        parts.append(_table(["what was noticed or changed", "#rows"], notices))
    if len(parts) == 1:
        parts.append("<p>Nothing: every row was used as it is.</p>")
    return "".join(parts)


def _made_from(fingerprint: Fingerprint) -> str:
    rows = [[_cell(name), f"<td><code>{_text(str(value))}</code></td>"] for name, value in fingerprint.settings.items()]
    files = [[_cell(name), f"<td><code>{_text(str(digest))}</code></td>"] for name, digest in fingerprint.data.items()]
    more = f'<p class="soft">and {len(files) - _MANY:,} more files</p>' if len(files) > _MANY else ""
    return (
        f"<h2>Made from</h2><p>Vocabulary <code>{_text(fingerprint.vocabulary)}</code>, renderer version "
        f"{fingerprint.renderer}.</p><details><summary>Files and settings</summary>"
        f"{_table(['file', 'SHA-256'], files[:_MANY])}{more}{_table(['setting', 'value'], rows)}</details>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; heads that begin with # are of numbers."""
    cells = "".join(f'<th class="n">{h[1:]}</th>' if h.startswith("#") else f"<th>{h}</th>" for h in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    return f"<td>{_text(text)}</td>"


def _number(value: int | str) -> str:
    return f'<td class="n">{value if isinstance(value, str) else f"{value:,}"}</td>'


def _bar(part: float, whole: float, kind: str = "") -> str:
    width = 100 * part / whole if whole else 0
    return (
        f'<td class="b"><svg class="bar {kind}" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{width:.2f}" height="8"/></svg></td>'
    )


def _share(part: float, whole: float) -> str:
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f}%" if percent >= 0.1 or not percent else "under 0.1%"


def _text(text: str) -> str:
    return html.escape(visible_line(str(text), 300))
