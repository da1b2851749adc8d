"""The last section of the page: samples with their raw tokens, coloured by channel, faults marked where they are."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from counterpoint.data.harmony.checker import read
from counterpoint.data.harmony.codes import CODES
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.data.pages.visible import Pieces
from counterpoint.train.evals.charts import CHANNELS
from counterpoint.train.evals.page_parts import block, line, section
from counterpoint.train.evals.report_data import Report, Row, codes_of, is_correct

MAX_EXAMPLES = 16
MAX_TOKENS = 600


def samples_section(report: Report, vocabulary: Vocabulary) -> str:
    """Failing samples first, the base's answer to the same prompt beside each, then some that training mended."""
    shown = report.shown
    other = {_key(row): row for row in report.base.rows} if report.base and report.tuned else {}
    failing = [row for row in shown.rows if not is_correct(row) or row["score"] not in (None, 1)]
    chosen = _chosen(report, failing, other)
    pieces = Pieces(vocabulary)
    drawn = "".join(_example(row, other.get(_key(row)), shown.label, pieces) for row in chosen)
    key = " ".join(f'<span class="tag {channel}">{channel}</span>' for channel in CHANNELS)
    told = (
        f"{len(failing)} of {len(shown.rows)} samples of the {line(shown.label)} model break a rule or are not right."
    )
    told += f" Raw tokens by channel: {key}. A fault is marked where it was found."
    return section("Samples", f"<p>{told}</p>", drawn)


def _chosen(report: Report, failing: list[Row], other: dict[Any, Row]) -> list[Row]:
    failing = _varied(sorted(failing, key=is_correct))
    if len(failing) >= MAX_EXAMPLES:
        return failing[:MAX_EXAMPLES]
    rows = report.shown.rows
    failed = {_key(row) for row in failing}
    mended = [row for row in rows if _key(row) in other and not is_correct(other[_key(row)])]
    rest = [row for row in _varied(mended) if _key(row) not in failed]
    return (failing + (rest or [row for row in rows if _key(row) not in failed]))[:MAX_EXAMPLES]


def _varied(rows: Sequence[Row]) -> list[Row]:
    """The same rows, one of each prompt first, then the second of each."""
    seen: dict[str, int] = {}
    order = []
    for i, row in enumerate(rows):
        seen[row["id"]] = seen.get(row["id"], 0) + 1
        order.append((seen[row["id"]], i))
    return [rows[i] for _, i in sorted(order)]


def _example(row: Row, before: Row | None, label: str, pieces: Pieces) -> str:
    task = f"{line(row['task'])} · " if row["task"] else ""
    head = f"{task}{line(row['id'])} · effort {line(row['effort'])}"
    asked = f'<p class="asked">{block(row["asked"])}</p>' if row.get("asked") else ""
    first = _side("base", before, pieces) if before is not None else ""
    return f"<article><h3>{head}</h3>{asked}{_expected(row)}{first}{_side(label, row, pieces)}</article>"


def _expected(row: Row) -> str:
    expected = row.get("expected") or {}
    if "calls" in expected:
        calls = "; ".join(f"{c['name']} {json.dumps(c['arguments'], ensure_ascii=False)}" for c in expected["calls"])
        return f'<p class="expected">expected: {line(calls or "no call")}</p>'
    return f'<p class="expected">expected: {line(expected["answer"])}</p>' if "answer" in expected else ""


def _side(label: str, row: Row, pieces: Pieces) -> str:
    faults = "".join(
        f"<li><code>{line(v['code'])}</code> {line(CODES.get(v['code'], ''))}: {line(v['detail'])}</li>"
        for v in row["violations"]
    )
    state = "right on every channel" if is_correct(row) else ", ".join(sorted(codes_of(row)))
    scored = "" if row["outcome"] is None else f", {line(row['scorer'])}: {line(row['outcome'])}"
    kind = "ok" if is_correct(row) else "bad"
    faults = f'<ul class="faults">{faults}</ul>' if faults else ""
    who = f'<p class="who"><b>{line(label)}</b> <span class="{kind}">{line(state)}</span>{scored}</p>'
    return f'<div class="side">{who}<div class="raw">{_tokens(row, pieces)}</div>{faults}</div>'


def _tokens(row: Row, pieces: Pieces) -> str:
    """The raw tokens, runs of one channel in one element, control tokens as chips, tokens with a fault marked."""
    ids = list(row["ids"])[:MAX_TOKENS]
    channel_of: list[str] = []
    for span in read(ids).spans:
        name = span.header.channel if span.header.channel in CHANNELS else ""
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


def _key(row: Row) -> tuple[Any, ...]:
    return row["task"], row["id"], row["effort"], row["sample"]
