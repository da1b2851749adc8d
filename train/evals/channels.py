"""Is each sampled completion right on every channel, and is its answer right? Pure functions on typed results."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from counterpoint.data.conversation import EFFORTS, Effort
from counterpoint.data.harmony.codes import TOOL_CODES
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.data.intervals import share_estimate, wilson
from counterpoint.train.scoring.languages import is_known, language_of
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.scorers import Score, Scorers

PROBE_FIELDS = ("skill", "pair", "attribute", "variant", "answers", "favourable")
"""Fields of a row that `guard` reads; they are copied to its samples."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One sample of one prompt at one effort, with everything that is known about it. more: of a rollout in an
    environment, what its line says in addition."""

    prompt: EvalPrompt
    effort: Effort
    sample: int
    completion: Completion
    score: Score | None
    more: Mapping[str, Any] = field(default_factory=dict)

    def as_row(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Plain types for a JSON line: ids, raw text, channels, violations, score."""
        c, truth = self.completion, self.prompt.conversation.metadata
        return {
            "id": self.prompt.id,
            "task": self.prompt.task,
            "effort": self.effort,
            "sample": self.sample,
            "asked": self.prompt.reference.prompt,
            "expected": expected_of(self.prompt),
            "cluster": self.prompt.cluster or self.prompt.id,
            "probe": {name: value for name, value in truth.items() if name in PROBE_FIELDS},
            "ids": list(c.ids),
            "text": vocabulary.decode(c.ids),
            "analysis": c.analysis,
            "preambles": list(c.preambles),
            "calls": [{"name": call.recipient, "arguments": call.arguments_text} for call in c.calls],
            "final": c.final,
            "languages": _languages(c),
            "stop": c.stop,
            "tokens": c.n_tokens_by_channel,
            "violations": [{"code": v.code, "position": v.position, "detail": v.detail} for v in c.violations],
            "scorer": self.prompt.scorer,
            "score": None if self.score is None else self.score.value,
            "outcome": None if self.score is None else self.score.outcome,
            "score_detail": None if self.score is None else self.score.detail,
            **self.more,
        }


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its 95 % interval; `share` is None for no samples.

    interval: for samples of the same prompt (`Rate.of`); None takes Wilson's, of independent samples.
    """

    count: int
    n: int
    interval: tuple[float, float] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, holds: Sequence[bool], prompts: Sequence[Hashable]) -> Rate:
        """Of samples that hold or not, those of one prompt being dependent."""
        if not holds:
            return cls(0, 0)
        found = share_estimate([float(each) for each in holds], prompts)
        return cls(sum(holds), len(holds), (found.low, found.high))

    @property
    def share(self) -> float | None:
        return self.count / self.n if self.n else None

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval or wilson(self.count, self.n)
        return {"count": self.count, "n": self.n, "rate": self.share, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class Summary:
    """Rates over a set of samples.

    correct: no violation of any rule. violations: samples with a code. with_analysis: non-empty analysis.
    valid_calls: calls without a violation of the tool rules, of all calls. right: answers or expected calls that score
    1, of all samples with a truth; failed: of them, scorers that raised, hung or gave no number. analysis_tokens,
    final_tokens: means by effort.
    """

    correct: Rate
    violations: Mapping[str, Rate]
    with_analysis: Rate
    valid_calls: Rate
    right: Rate
    right_answers: Rate
    right_calls: Rate
    failed: int
    score: float | None
    analysis_tokens: Mapping[str, float]
    final_tokens: Mapping[str, float]
    correct_by_effort: Mapping[str, Rate]
    right_by_effort: Mapping[str, Rate]

    def scalars(self) -> dict[str, float]:
        """Numbers for curves: `channel_correct`, `violations/<code>`, `analysis_tokens/<effort>`, ..."""
        out: dict[str, float | None] = {
            "channel_correct": self.correct.share,
            "with_analysis": self.with_analysis.share,
            "valid_calls": self.valid_calls.share,
            "right": self.right.share,
            "right_answers": self.right_answers.share,
            "right_calls": self.right_calls.share,
            "score": self.score,
            "scorer_failures": float(self.failed),
        }
        out |= {f"violations/{code}": rate.share for code, rate in self.violations.items()}
        out |= {f"analysis_tokens/{effort}": mean for effort, mean in self.analysis_tokens.items()}
        out |= {f"final_tokens/{effort}": mean for effort, mean in self.final_tokens.items()}
        out |= {f"channel_correct/{effort}": rate.share for effort, rate in self.correct_by_effort.items()}
        out |= {f"right/{effort}": rate.share for effort, rate in self.right_by_effort.items()}
        return {name: value for name, value in out.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """Plain types for `report.json`."""
        out: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Rate):
                value = value.as_dict()
            elif isinstance(value, Mapping):
                value = {key: v.as_dict() if isinstance(v, Rate) else v for key, v in value.items()}
            out[name] = value
        return out


def judge(
    prompt: EvalPrompt,
    effort: Effort,
    sample: int,
    ids: Sequence[int],
    finish_reason: str | None,
    vocabulary: Vocabulary,
    scorers: Scorers,
) -> Judged:
    """Check and score one completion (real ids after `<|start|>assistant`)."""
    conversation = prompt.conversation
    completion = parse_completion(
        ids,
        vocabulary,
        tools=conversation.tools,
        builtin_tools=conversation.builtin_tools,
        effort=effort,
        response_format=conversation.response_format,
        finish_reason=finish_reason,
    )
    score = None if prompt.scorer is None else scorers.score(prompt.scorer, completion, prompt.reference)
    return Judged(prompt, effort, sample, completion, score)


def _languages(completion: Completion) -> dict[str, str | None] | None:
    """Of analysis and final, where they can be told; None without the package."""
    if not is_known():
        return None
    return {"analysis": language_of(completion.analysis or ""), "final": language_of(completion.final or "")}


def expected_of(prompt: EvalPrompt) -> dict[str, Any]:
    """The truth that a sample is compared with, as far as a reader can use it: `answer`, or `calls`."""
    truth = prompt.reference
    if prompt.scorer == "calls" and truth.calls is not None:
        return {"calls": [{"name": call.name, "arguments": dict(call.arguments)} for call in truth.calls]}
    return {"answer": truth.answer} if prompt.scorer is not None and truth.answer is not None else {}


def summarise(samples: Iterable[Judged]) -> Summary:
    """Rates over the samples, in no particular order."""
    samples = list(samples)
    codes = {code for s in samples for code in s.completion.codes}
    scored = [s for s in samples if s.score is not None]
    calls = sum(len(s.completion.calls) for s in samples)
    efforts = [effort for effort in EFFORTS if any(s.effort == effort for s in samples)]
    by_effort = {effort: [s for s in samples if s.effort == effort] for effort in efforts}
    return Summary(
        correct=_correct(samples),
        violations={code: _rate(samples, lambda s, code=code: code in s.completion.codes) for code in sorted(codes)},
        with_analysis=_rate(samples, lambda s: bool((s.completion.analysis or "").strip())),
        valid_calls=Rate(calls - sum(_call_faults(s) for s in samples), calls),
        right=_right(scored),
        right_answers=_right([s for s in scored if s.prompt.scorer != "calls"]),
        right_calls=_right([s for s in scored if s.prompt.scorer == "calls"]),
        failed=sum(s.score.outcome == "failed" for s in scored if s.score),
        score=float(np.mean([s.score.value for s in scored if s.score])) if scored else None,
        analysis_tokens={effort: _mean_tokens(group, "analysis") for effort, group in by_effort.items()},
        final_tokens={effort: _mean_tokens(group, "final") for effort, group in by_effort.items()},
        correct_by_effort={effort: _correct(group) for effort, group in by_effort.items()},
        right_by_effort={effort: _right([s for s in group if s.score]) for effort, group in by_effort.items()},
    )


def _call_faults(sample: Judged) -> int:
    """Calls with a fault: at most the violations of the tool rules, and never more than there are calls."""
    faults = sum(violation.code in TOOL_CODES for violation in sample.completion.violations)
    return min(faults, len(sample.completion.calls))


def _correct(samples: Sequence[Judged]) -> Rate:
    return _rate(samples, lambda s: s.completion.ok)


def _right(samples: Sequence[Judged]) -> Rate:
    return _rate(samples, lambda s: s.score is not None and s.score.value == 1)


def _rate(samples: Sequence[Judged], holds: Callable[[Judged], bool]) -> Rate:
    return Rate.of([holds(s) for s in samples], [(s.prompt.task, s.prompt.cluster or s.prompt.id) for s in samples])


def _mean_tokens(samples: Sequence[Judged], channel: str) -> float:
    return float(np.mean([s.completion.n_tokens_by_channel[channel] for s in samples]))
