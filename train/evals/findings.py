"""What a report concludes, computed once from its samples: rates, differences, the guard, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.configs.errors import DataError
from counterpoint.data.conversation import EFFORTS
from counterpoint.train.evals.channels import Rate
from counterpoint.train.evals.compare import Comparison, Difference, Metric, compare
from counterpoint.train.evals.effort import Advice, advise, points_of_rows
from counterpoint.train.evals.effort_tokens import Shift, lengths_of_rows, shift
from counterpoint.train.evals.language_drift import Drift, drifts, languages_by_effort
from counterpoint.train.evals.report_data import BASE, TUNED, Numbers, Report, Row, Side
from counterpoint.train.evals.results import Cell, cells
from counterpoint.train.evals.retention_probes import Guarded, guard
from counterpoint.train.evals.reward_differences import RewardDifference, reward_differences

MOST_TOLD = 6
"""Sentences about what got worse; the tables hold the rest."""


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence of the verdict; bad: something that got worse, or is wrong."""

    text: str
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """One side in numbers. tasks: a cell for each task and effort. advice: over all samples with a truth. languages: by
    channel and effort."""

    label: str
    numbers: Numbers
    tasks: tuple[Cell, ...]
    advice: Advice
    languages: Mapping[str, Mapping[str, Mapping[str, Rate]]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "label": self.label,
            **self.numbers.as_dict(),
            "tasks": [cell.as_dict() for cell in self.tasks],
            "effort": self.advice.as_dict(),
            "languages": {
                channel: {
                    effort: {code: rate.as_dict() for code, rate in found.items()} for effort, found in efforts.items()
                }
                for channel, efforts in self.languages.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Findings:
    """sides: `base` and `tuned`, those that were measured. difference: tuned against base, paired; guard: of the
    probes; effort: of the analysis's length; None unless both sides are there, and there is a probe. drifts: into other
    languages. rewards: tuned against base, by task and reward."""

    sides: Mapping[str, Measured]
    difference: Comparison | None
    guard: Guarded | None
    effort: Shift | None
    drifts: tuple[Drift, ...]
    verdict: tuple[Said, ...]
    rewards: tuple[RewardDifference, ...] = ()

    @property
    def shown(self) -> Measured:
        """The side that the report is about."""
        return self.sides.get(TUNED) or self.sides[BASE]

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": [said.text for said in self.verdict],
            **{who: self.sides[who].as_dict() if who in self.sides else None for who in (BASE, TUNED)},
            "difference": None if self.difference is None else self.difference.as_dict(),
            "guard": None if self.guard is None else self.guard.as_dict(),
            "effort": None if self.effort is None else self.effort.as_dict(),
            "drifts": [drift.as_dict() for drift in self.drifts],
            "rewards": [each.as_dict() for each in self.rewards],
        }


def findings_of(report: Report) -> Findings:
    """The findings of the report's samples. ValueError for a side without samples."""
    both = [(BASE, report.base), (TUNED, report.tuned)]
    sides = {who: _measured(side) for who, side in both if side is not None}
    difference, guarded, effort = None, None, None
    drifted: list[Drift] = []
    rewards: list[RewardDifference] = []
    if report.base is not None and report.tuned is not None:
        base, tuned = report.base.valid, report.tuned.valid
        difference = _difference(base, tuned, report.tuned.label)
        guarded = guard(base, tuned)
        guarded = guarded if guarded.skills or guarded.tilts else None
        effort = shift(lengths_of_rows(base), lengths_of_rows(tuned))
        drifted = drifts(base, tuned)
        rewards = reward_differences(base, tuned)
    said = [*_verdict(sides, difference, guarded, effort), *(Said(drift.sentence, bad=True) for drift in drifted)]
    said += [Said(_reward(each), each.told == "worse") for each in rewards if each.reward == "reward"]
    said += [Said(text, bad=True) for text in _invalid(sides)]
    return Findings(sides, difference, guarded, effort, tuple(drifted), tuple(said), tuple(rewards))


def _measured(side: Side) -> Measured:
    advice = advise(points_of_rows(row for row in side.valid if not _is_pair(row)))
    return Measured(side.label, side.numbers, tuple(cells(side.rows)), advice, languages_by_effort(side.valid))


def _is_pair(row: Row) -> bool:
    return bool((row.get("probe") or {}).get("pair"))


def _reward(found: RewardDifference) -> str:
    d = found.difference
    size = f"{found.base:.3g} to {found.tuned:.3g}"
    interval = "" if d.low != d.low else f" ({d.value:+.3g}, 95 % interval {d.low:+.3g} to {d.high:+.3g})"
    told = {"better": "more", "worse": "less", "same": "the same", "unclear": "too few items to tell"}[found.told]
    return f"Reward of {found.task or 'the prompts'}, paired by prompt: {size}{interval}: {told}."


def _invalid(sides: Mapping[str, Measured]) -> list[str]:
    """What was left out of all numbers."""
    out = []
    for measured in sides.values():
        rates = [cell.rollouts.invalid for cell in measured.tasks if cell.rollouts is not None]
        count, n = sum(rate.count for rate in rates), sum(rate.n for rate in rates)
        if count:
            out.append(
                f"Left out: {count} of {n} rollouts of the {measured.label} model, whose environment or reward failed."
            )
    return out


def _difference(base: Sequence[Row], tuned: Sequence[Row], label: str) -> Comparison | None:
    try:
        return compare(base, tuned, f"the {label} model")
    except DataError:
        return None  # no prompt in common: nothing to pair


def _verdict(
    sides: Mapping[str, Measured], difference: Comparison | None, guarded: Guarded | None, effort: Shift | None
) -> list[Said]:
    base, tuned = sides.get(BASE), sides.get(TUNED)
    shown = tuned or base
    assert shown is not None
    said = [Said(_channels(shown, base if tuned else None))]
    paired: dict[Metric, Difference] = {}
    for each in difference.differences if difference is not None else ():
        paired.setdefault(each.metric, each)  # the first of a metric is over all items
    if "correct" in paired:
        said.append(_paired(paired["correct"]))
    if base and tuned:
        worse = _worse(base.numbers, tuned.numbers)
        said += [Said(text, bad=True) for text in worse[:MOST_TOLD]]
        if len(worse) > MOST_TOLD:
            said.append(Said(f"And {len(worse) - MOST_TOLD} more: see the violations.", bad=True))
    said += _answers(shown, base if tuned else None, paired)
    if effort is not None and effort.verdict != "kept":
        said.append(Said(effort.sentence, bad=True))
    elif shown.numbers.efforts_in_order is False:
        said.append(Said(_out_of_order(shown.numbers), bad=True))
    if guarded is not None:
        said += _guarded(guarded)
    return said


def _channels(shown: Measured, base: Measured | None) -> str:
    before = "" if base is None else f"; the base in {told(base.numbers.correct)}"
    return f"The {shown.label} model is right on every channel in {told(shown.numbers.correct)}{before}."


def _paired(difference: Difference) -> Said:
    what = {"correct": "Channels", "score": "Answers and calls"}[difference.metric]
    sentence = difference.sentence[0].lower() + difference.sentence[1:]
    return Said(f"{what}, paired by prompt: {sentence}", difference.told == "worse")


def _answers(shown: Measured, base: Measured | None, paired: Mapping[Metric, Difference]) -> list[Said]:
    said: list[Said] = []
    before = base.numbers if base is not None else None
    for what, rate, was in (
        ("answers", shown.numbers.answers, before and before.answers),
        ("expected tool calls", shown.numbers.calls, before and before.calls),
    ):
        if rate.n:
            compared = f" (base {share(was)})" if was and was.n else ""
            said.append(Said(f"Right {what}: {share(rate)} of {rate.n}{compared}."))
    return [*said, _paired(paired["score"])] if "score" in paired else said


def _worse(base: Numbers, tuned: Numbers) -> list[str]:
    """What the tuned model does worse than the base by more than the intervals explain."""
    codes: list[str] = []
    for code, rate in tuned.violations.items():
        before = base.violations.get(code, Rate(0, base.items))  # samples of one item are no further evidence
        if _above(rate, before):
            codes.append(f"Worse than the base: {code} in {share(rate)} of samples (base {share(before)}).")
    pairs = (
        ("answers", base.answers, tuned.answers),
        ("tool calls", base.calls, tuned.calls),
        ("samples with analysis", base.with_analysis, tuned.with_analysis),
    )
    return [f"Worse than the base: {what}, {share(b)} to {share(t)}." for what, b, t in pairs if _above(b, t)] + codes


def _above(a: Rate, b: Rate) -> bool:
    """Whether a's interval is entirely above b's."""
    return bool(a.n and b.n and a.as_dict()["low"] > b.as_dict()["high"])


def _out_of_order(numbers: Numbers) -> str:
    lengths = ", ".join(f"{e} {numbers.efforts[e].analysis_tokens:.0f}" for e in EFFORTS if e in numbers.efforts)
    return f"More effort does not mean longer analysis (mean tokens: {lengths})."


def _guarded(guarded: Guarded) -> list[Said]:
    """What the probes show: skills lost or weaker in a line each, every new tilt, or that there is nothing."""
    said: list[Said] = []
    for verdict, head in (("lost", "Lost on the probes"), ("weaker", "Weaker on the probes, which may be chance")):
        skills = [skill for skill in guarded.skills if skill.verdict == verdict]
        if skills:
            names = ", ".join(f"{s.name} ({s.what} {share(s.base)} to {share(s.tuned)})" for s in skills[:MOST_TOLD])
            more = f", and {len(skills) - MOST_TOLD} more" if len(skills) > MOST_TOLD else ""
            said.append(Said(f"{head}: {names}{more}.", bad=verdict == "lost"))
    said += [Said(f"Tilted: {tilt.sentence}.", bad=True) for tilt in guarded.tilts if tilt.worse]
    return said or [Said(_quiet(guarded))]


def _quiet(guarded: Guarded) -> str:
    counts = []
    if guarded.skills:
        count = len({skill.name for skill in guarded.skills})
        counts.append(f"{count} skill{'s' * (count != 1)}")
    if guarded.tilts:
        counts.append(f"pairs that differ in {', '.join(tilt.attribute for tilt in guarded.tilts)}")
    return f"Nothing is lost and nothing newly tilted on the probes ({'; '.join(counts)})."


def share(rate: Rate) -> str:
    """`0.93`, or `none`."""
    return "none" if rate.share is None else f"{rate.share:.2f}"


def told(rate: Rate) -> str:
    """`39 of 96 samples (0.41, 95 % interval 0.31 to 0.51)`."""
    low, high = rate.as_dict()["low"], rate.as_dict()["high"]
    return f"{rate.count} of {rate.n} samples ({share(rate)}, 95 % interval {low:.2f} to {high:.2f})"
