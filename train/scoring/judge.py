"""Rewards of type `judge`: a model gives the answer a score, or judges it by a rubric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.reward_section import CriterionSettings, JudgeReward
from counterpoint.train.scoring.asking import (
    QUOTED,
    Asking,
    Bill,
    UnjudgedError,
    object_schema,
    score_in,
    score_schema,
)
from counterpoint.train.scoring.function_rewards import Found
from counterpoint.train.scoring.outcome import Outcome
from counterpoint.train.scoring.scorers import answer_of
from counterpoint.train.scoring.templates import MissingValueError, Template, value_of

_SCORE = """A question was put to an assistant:

{{prompt}}

Its answer:

{{final}}

Score the answer: %g for one that is wrong or of no use, %g for one that is right and complete."""
_RUBRIC = """A question was put to an assistant:

{{prompt}}

Its answer:

{{final}}

A criterion:

{{criterion}}

Does the answer meet the criterion? Where the criterion names several things, all must hold, unless it says "such as". A
criterion may name a fault: it is met where the answer has that fault."""
_KNOWN = ("prompt", "final", "transcript", "analysis")
_QUOTED = (*_KNOWN, "row")


class ModelJudge:
    """One judge. Thread-safe; close it. ConfigError for an unknown variable of the template."""

    def __init__(self, settings: JudgeReward, name: str, pause: float = 1.0) -> None:
        self.settings, self._name = settings, name
        known = (*_KNOWN, "criterion") if settings.rubric is not None else _KNOWN
        self._range = settings.range or (0.0, 1.0)
        plain = _RUBRIC if settings.rubric is not None else _SCORE % self._range
        self._template = Template.read(settings.template or plain, f"reward {name}: template", known, ("row",))
        self._needs_final = any(variable.path[0] == "final" for variable in self._template.variables())
        if settings.rubric is not None and "criterion" not in map(str, self._template.variables()):
            raise ConfigError(f"reward {name}: template: it has no `{{{{criterion}}}}`, which a rubric needs")
        self.notes: Sequence[str] = ()
        self.asking: Asking | None = Asking(settings, settings.url, name, pause)

    def missing(self, outcome: Outcome) -> str | None:
        """What the row lacks."""
        for variable in self._template.variables():
            if variable.path[0] == "row":
                try:
                    value_of(variable, {"row": outcome.row})
                except MissingValueError:
                    return f"`{{{{{variable}}}}}`"
        if isinstance(self.settings.rubric, str) and not criteria_of(outcome.row, self.settings.rubric):
            return f"a rubric in `{self.settings.rubric}`"
        return None

    def one(self, outcome: Outcome) -> Found:
        """0 where there is no answer to judge."""
        if self.missing(outcome) is not None:
            return Found(None, applies=False)
        final = answer_of(outcome.completion)
        if self._needs_final and (final is None or not final.strip()):
            return Found(0.0)
        values = {
            "prompt": _said(outcome.asked.messages if outcome.asked is not None else ()) or outcome.reference.prompt,
            "final": final or "",
            "transcript": transcript(outcome),
            "analysis": outcome.completion.analysis or "",
            "row": outcome.row,
        }
        bill = Bill()
        try:
            if self.settings.rubric is None:
                least, most = self._range
                value = self._asked(values, score_schema(least, most), score_in(least, most), bill)
            else:
                value = self._by_rubric(values, outcome, bill)
        except UnjudgedError as error:
            return Found(None, failed=str(error), tokens=bill.tokens)
        return Found(value, tokens=bill.tokens)

    def close(self) -> None:
        if self.asking is not None:
            self.asking.close()

    def _by_rubric(self, values: Mapping[str, Any], outcome: Outcome, bill: Bill) -> float:
        given = self.settings.rubric
        criteria = criteria_of(outcome.row, given) if isinstance(given, str) else tuple(given or ())
        schema = object_schema({"explanation": {"type": "string"}, "criteria_met": {"type": "boolean"}})
        met = [self._asked({**values, "criterion": each.criterion}, schema, _met, bill) for each in criteria]
        reached = sum(each.points for each, is_met in zip(criteria, met, strict=True) if is_met)
        return reached / sum(each.points for each in criteria if each.points > 0)

    def _asked(self, values: Mapping[str, Any], schema: Mapping[str, Any], read: Any, bill: Bill) -> Any:
        assert self.asking is not None
        text = self._template.filled(values, _QUOTED)
        messages = [{"role": "system", "content": QUOTED}, {"role": "user", "content": text}]
        return self.asking.ask(messages, schema, read, bill)


def criteria_of(row: Mapping[str, Any], field: str) -> tuple[CriterionSettings, ...]:
    """The rubric of a row: HealthBench's `{criterion, points}`, or `{description, weight}`. Empty where it has none
    whose criteria can all be read, one of them with positive points."""
    given = row.get(field)
    if not isinstance(given, list):
        return ()
    criteria: list[CriterionSettings] = []
    for each in given:
        each = {"criterion": each} if isinstance(each, str) else each
        if not isinstance(each, Mapping):
            return ()
        text = next((each[name] for name in ("criterion", "description") if isinstance(each.get(name), str)), "")
        points = next((each[name] for name in ("points", "weight") if each.get(name) is not None), 1.0)
        if not text or isinstance(points, bool) or not isinstance(points, int | float):
            return ()
        criteria.append(CriterionSettings(criterion=text, points=float(points)))
    return tuple(criteria) if any(each.points > 0 for each in criteria) else ()


def transcript(outcome: Outcome) -> str:
    """Everything that was said, tool calls and results among it, but no thoughts."""
    said = outcome.rollout.messages if outcome.rollout is not None else ()
    lines = []
    for each in said:
        if each.get("channel") == "analysis" and each.get("recipient") is None and each["role"] == "assistant":
            continue
        to = f" to {each['recipient']}" if each.get("recipient") else ""
        of = f" {each['name']}" if each.get("name") else ""
        lines.append(f"{each['role']}{of}{to}: {each['content']}")
    return "\n\n".join(lines)


def _said(messages: Sequence[Any]) -> str:
    """The prompt: a single question as it is, a longer conversation with the roles."""
    shown = [each for each in messages if each.role in ("user", "assistant", "tool") and each.channel != "analysis"]
    if len(shown) == 1:
        return shown[0].content
    return "\n\n".join(f"{each.role}: {each.content}" for each in shown)


def _met(answer: Any) -> bool:
    met = answer.get("criteria_met")
    if not isinstance(met, bool):
        raise ValueError(f"an answer whose `criteria_met` is not true or false ({str(met)[:40]})")
    return met
