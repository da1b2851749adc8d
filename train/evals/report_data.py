"""What an evaluation found, as numbers for a page and for `report.json`: base against tuned, and during training.

Everything is computed from the samples themselves (`Judged.as_row`), so that a report can be rebuilt at any time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import CounterpointError, DataError
from counterpoint.configs.load import load_run
from counterpoint.configs.schema import TrainingRun
from counterpoint.data.conversation import EFFORTS
from counterpoint.data.harmony.codes import TOOL_CODES
from counterpoint.train.evals.channels import Rate
from counterpoint.train.run.folder import METRICS, json_lines
from counterpoint.train.scoring.scorers import full_name

Row = Mapping[str, Any]
BASE, TUNED = "base", "tuned"


@dataclass(frozen=True, slots=True)
class EffortNumbers:
    """One effort of one side. Token counts are means a sample; right is over samples with a truth."""

    correct: Rate
    with_analysis: Rate
    right: Rate
    analysis_tokens: float
    final_tokens: float


@dataclass(frozen=True, slots=True)
class Numbers:
    """One side. violations: samples with a code. calls: samples that make the expected calls; right_tool: that call the
    expected tools, whatever the arguments. valid_calls: samples with a call and no fault of the tool rules, of those
    with a call. truncated: samples cut by the limit of new tokens."""

    n: int
    items: int
    correct: Rate
    with_analysis: Rate
    answers: Rate
    calls: Rate
    right_tool: Rate
    valid_calls: Rate
    truncated: Rate
    violations: dict[str, Rate]
    efforts: dict[str, EffortNumbers]

    @property
    def efforts_in_order(self) -> bool | None:
        """Whether more effort means longer analysis; None with fewer than two efforts."""
        lengths = [self.efforts[effort].analysis_tokens for effort in EFFORTS if effort in self.efforts]
        return None if len(lengths) < 2 else all(a < b for a, b in itertools.pairwise(lengths))

    def as_dict(self) -> dict[str, Any]:
        return _plain(self) | {"efforts_in_order": self.efforts_in_order}


@dataclass(frozen=True, slots=True)
class Side:
    """Samples of one model. label: `base`, `tuned`, or a name."""

    label: str
    rows: Sequence[Row]

    @property
    def valid(self) -> list[Row]:
        """The rows that say something of the model; all where none does."""
        return [row for row in self.rows if not row.get("invalid")] or list(self.rows)

    @property
    def numbers(self) -> Numbers:
        return numbers_of(self.valid)


@dataclass(frozen=True, slots=True)
class Report:
    """What a page shows.

    facts: (name, value) under the title. points: `EvalPoint.as_dict` of each evaluation, by step. losses: lines of the
    run's metrics. notes: what a reader should know about tasks and scorers. model: name of the base, for the column of
    the model card. Either side may be missing, not both.
    """

    title: str
    tuned: Side | None
    base: Side | None = None
    facts: Sequence[tuple[str, str]] = ()
    points: Sequence[Mapping[str, Any]] = ()
    losses: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    model: str = ""

    @property
    def shown(self) -> Side:
        """The side that the report is about."""
        side = self.tuned or self.base
        assert side is not None
        return side


def numbers_of(rows: Sequence[Row]) -> Numbers:
    """Rates over all samples. ValueError for none."""
    if not rows:
        raise ValueError("no samples: give at least one")
    codes = Counter(code for row in rows for code in codes_of(row))
    called = [row for row in rows if row["calls"]]
    by_effort = {effort: [row for row in rows if row["effort"] == effort] for effort in EFFORTS}
    return Numbers(
        n=len(rows),
        items=len({(row["task"], row["id"]) for row in rows}),
        correct=_rate(rows, is_correct),
        with_analysis=_rate(rows, _thinks),
        answers=right_rate([row for row in rows if row["scorer"] != "calls"]),
        calls=right_rate([row for row in rows if row["scorer"] == "calls"]),
        right_tool=_rate([row for row in rows if "calls" in (row.get("expected") or {})], _right_tool),
        valid_calls=_rate(called, lambda row: not codes_of(row) & TOOL_CODES),
        truncated=_rate(rows, lambda row: row["stop"] == "length"),
        violations={code: _rate(rows, lambda row, code=code: code in codes_of(row)) for code, _ in codes.most_common()},
        efforts={effort: _effort(group) for effort, group in by_effort.items() if group},
    )


def run_report(run_folder: Path) -> Report:
    """The report of a training run, from what the eval hook wrote to its folder. DataError where there is nothing."""
    from counterpoint.train.evals.hook import read_points

    folder = run_folder / "eval"
    points = sorted(read_points(folder), key=lambda point: (point["step"], point["who"]))
    newest = {who: max((p["step"] for p in points if p["who"] == who), default=None) for who in (BASE, TUNED)}
    sides = {}
    for who, step in newest.items():
        path = folder / f"step-{step or 0:06d}-{who}.jsonl"
        if step is not None and path.is_file():
            sides[who] = Side(who, json_lines(path))
    first = next((p for p in points if p["who"] == TUNED), None)
    if BASE not in sides and first is not None and first["step"] != newest[TUNED]:
        path = folder / f"step-{first['step']:06d}-{TUNED}.jsonl"
        if first["step"] == 0 and path.is_file():
            sides[BASE] = Side(BASE, json_lines(path))
    sides = {who: side for who, side in sides.items() if side.rows}
    if not sides:
        raise DataError(f"{run_folder}: its eval hook measured nothing: use `counterpoint evaluate {run_folder}`")
    engines = dict.fromkeys(str(point["engine"]) for point in points if "engine" in point)
    facts = [*_run_facts(run_folder), *([("engine", ", ".join(engines))] if engines else [])]
    return Report(
        title=run_folder.name,
        tuned=sides.get(TUNED),
        base=sides.get(BASE),
        facts=facts,
        points=points,
        losses=[line for line in json_lines(run_folder / METRICS) if "loss" in line],
        model=dict(facts).get("model", ""),
    )


def _run_facts(run_folder: Path) -> list[tuple[str, str]]:
    try:
        settings = load_run(run_folder / "config.yaml")
    except CounterpointError:
        return []
    facts = [("recipe", settings.recipe), ("model", settings.model.name)]
    if isinstance(settings, TrainingRun):
        trained = f"LoRA, rank {settings.lora.rank}" if settings.lora.enabled else "all weights"
        sources = [getattr(source, "path", None) or getattr(source, "type", "") for source in settings.data.train]
        facts += [("trained", trained), ("data", ", ".join(sources))]
    return [*facts, ("seed", str(settings.seed))]


def codes_of(row: Row) -> set[str]:
    return {violation["code"] for violation in row["violations"]}


def is_correct(row: Row) -> bool:
    return not row["violations"]


def right_rate(rows: Sequence[Row]) -> Rate:
    """Samples that score 1, of those with a truth."""
    return _rate([row for row in rows if row["score"] is not None], lambda row: row["score"] == 1)


def _thinks(row: Row) -> bool:
    return bool((row["analysis"] or "").strip())


def _right_tool(row: Row) -> bool:
    wanted = sorted(full_name(call["name"]) for call in row["expected"]["calls"])
    return sorted(call["name"] for call in row["calls"]) == wanted


def _effort(rows: Sequence[Row]) -> EffortNumbers:
    return EffortNumbers(
        correct=_rate(rows, is_correct),
        with_analysis=_rate(rows, _thinks),
        right=right_rate(rows),
        analysis_tokens=sum(row["tokens"]["analysis"] for row in rows) / len(rows),
        final_tokens=sum(row["tokens"]["final"] for row in rows) / len(rows),
    )


def _rate(rows: Sequence[Row], holds: Any) -> Rate:
    return Rate.of([bool(holds(row)) for row in rows], [(row["task"], row.get("cluster") or row["id"]) for row in rows])


def _plain(value: Any) -> Any:
    if isinstance(value, Rate):
        return value.as_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
