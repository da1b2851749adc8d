"""The last section of a report: samples with their raw tokens by channel, faults marked in place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.data.harmony.checker import read
from counterpoint.data.harmony.codes import CODES
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.data.pages.visible import Pieces
from counterpoint.train.evals.charts import CHANNELS
from counterpoint.train.evals.report_data import Report, Row, codes_of, is_correct

MAX_EXAMPLES = 16
MAX_TOKENS = 600


@dataclass(frozen=True, slots=True)
class Part:
    """Text, or one control token by its name (`special`); marked: a fault was found in it."""

    text: str
    special: bool
    marked: bool


@dataclass(slots=True)
class Run:
    """Tokens of one channel, or of none (empty)."""

    channel: str
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's sample. state: the codes that it breaks. scored: its scorer and outcome, or empty. rest: tokens that
    are not in `runs`. faults: (code, what it means, detail)."""

    label: str
    correct: bool
    state: str
    scored: str
    runs: Sequence[Run]
    rest: int
    faults: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and its answers, the base's first where there are two."""

    head: str
    asked: str
    expected: str
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class Samples:
    """failing: samples of the shown side that break a rule or are not right, of `total`."""

    failing: int
    total: int
    shown: Sequence[Sample]


def samples_of(report: Report, vocabulary: Vocabulary) -> Samples:
    """Failing samples first, each with the base's answer to the same prompt, then some that training fixed."""
    shown = report.shown
    other = {_key(row): row for row in report.base.rows} if report.base and report.tuned else {}
    failing = [row for row in shown.rows if not is_correct(row) or row["score"] not in (None, 1)]
    pieces = Pieces(vocabulary)
    samples = []
    for row in _chosen(report, failing, other):
        before = other.get(_key(row))
        answers = [] if before is None else [_answer("base", before, pieces)]
        answers.append(_answer(shown.label, row, pieces))
        head = " · ".join(filter(None, (row["task"], row["id"], f"effort {row['effort']}")))
        samples.append(Sample(head, row.get("asked") or "", _expected(row), answers))
    return Samples(len(failing), len(shown.rows), samples)


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


def _expected(row: Row) -> str:
    expected = row.get("expected") or {}
    if "calls" in expected:
        calls = (f"{c['name']} {json.dumps(c['arguments'], ensure_ascii=False)}" for c in expected["calls"])
        return "; ".join(calls) or "no call"
    return str(expected.get("answer", ""))


def _answer(label: str, row: Row, pieces: Pieces) -> Answer:
    runs = _runs(row, pieces)
    return Answer(
        label=label,
        correct=is_correct(row),
        state="right on every channel" if is_correct(row) else ", ".join(sorted(codes_of(row))),
        scored="" if row["outcome"] is None else f"{row['scorer']}: {row['outcome']}",
        runs=runs,
        rest=max(0, len(row["ids"]) - MAX_TOKENS),
        faults=[(v["code"], CODES.get(v["code"], ""), v["detail"]) for v in row["violations"]],
    )


def _runs(row: Row, pieces: Pieces) -> list[Run]:
    """The raw tokens in runs of one channel; control tokens and tokens with a fault are separate parts."""
    ids = list(row["ids"])[:MAX_TOKENS]
    channel_of: list[str] = []
    for span in read(ids).spans:
        name = span.header.channel if span.header.channel in CHANNELS else ""
        channel_of += [name or ""] * (min(span.body_end + 1, len(ids)) - len(channel_of))
    channel_of += [""] * (len(ids) - len(channel_of))
    faults = {v["position"] for v in row["violations"]}
    runs: list[Run] = []
    at = 0
    for piece in pieces.of(ids):
        channel = channel_of[at]
        marked = any(at <= position < at + len(piece.ids) for position in faults)
        at += len(piece.ids)
        if not runs or channel != runs[-1].channel:
            runs.append(Run(channel, []))
        runs[-1].parts.append(Part(piece.text, piece.special, marked))
    return runs


def _key(row: Row) -> tuple[Any, ...]:
    return row["task"], row["id"], row["effort"], row["sample"]
