"""Rewards of a rollout: small functions on the typed result, each a number from 0 to 1, combined with weights.

Only a finished, single final is an answer. A reward for format (length, language, JSON) is given to answers alone, and
with an `answer` reward it is scaled by that one: an empty answer, junk, an echo of the prompt, or an answer left in the
analysis earns nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

from counterpoint.configs import reward_section as kinds
from counterpoint.configs.errors import ConfigError
from counterpoint.configs.reward_section import RewardSettings
from counterpoint.data.conversation import Effort
from counterpoint.data.harmony.codes import TOOL_CODES
from counterpoint.data.harmony.completion import Completion
from counterpoint.train.sampling.rollout import Called
from counterpoint.train.scoring.languages import LANGUAGES, PACKAGE, is_known, language_shares
from counterpoint.train.scoring.prompts import default_scorer
from counterpoint.train.scoring.scorers import MissingTruthError, Reference, Score, Scorers, answer_of


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reward sees of a rollout: the typed result of all its actions, the calls that were run, the row's truth.

    scorer: the comparison that the row asks for; None takes what fits its truth.
    """

    completion: Completion
    called: tuple[Called, ...]
    reference: Reference
    effort: Effort = "medium"
    scorer: str | None = None


class Rewards:
    """The rewards of a run file. Close it, or use it as a context manager: user code runs in a child process.

    failures: how often each reward's own code raised, hung or gave no number; such a rollout earns 0 from it.
    causes: of each such reward, the first one in words.
    """

    def __init__(self, settings: Sequence[RewardSettings], seconds: float = 10.0) -> None:
        self.settings = tuple(settings)
        self.names = _names(self.settings)
        self.weights = tuple(setting.weight for setting in self.settings)
        self.failures: Counter[str] = Counter()
        self.causes: dict[str, str] = {}
        self._scorers = Scorers(seconds)

    def unjudged(self, outcomes: Sequence[Outcome]) -> dict[str, int]:
        """Of outcomes without a completion, one a turn: how many have no truth for each `answer` reward.

        ConfigError for an unknown comparison, a missing package, or a missing function.
        """
        missing: dict[str, int] = {}
        checked: set[str] = set()
        for name, setting in zip(self.names, self.settings, strict=True):
            if isinstance(setting, kinds.LanguageReward):
                _check_language(name, setting)
            if not isinstance(setting, kinds.AnswerReward | kinds.FunctionReward):
                continue
            asked = [_scorer(setting, outcome) for outcome in outcomes]
            for scorer in {scorer for scorer in asked if scorer is not None} - checked:
                try:
                    self._scorers.check(scorer)
                except ConfigError as error:
                    raise ConfigError(f"reward {name}: {error}") from None
                checked.add(scorer)
            if isinstance(setting, kinds.AnswerReward):
                missing[name] = sum(self._is_missing(s, o) for s, o in zip(asked, outcomes, strict=True))
        return missing

    def _is_missing(self, scorer: str | None, outcome: Outcome) -> bool:
        return scorer is None or (":" not in scorer and _score(scorer, outcome, self._scorers) is None)

    def score(self, outcome: Outcome) -> list[float]:
        """One number a reward, in their order, before weights."""
        values = [self._value(name, setting, outcome) for name, setting in zip(self.names, self.settings, strict=True)]
        found = list(zip(values, self.settings, strict=True))
        right = math.prod(v for v, s in found if isinstance(s, kinds.AnswerReward) and v is not None)
        return [
            0.0 if v is None else v * right if isinstance(s, kinds.GatedReward) and s.gated else v for v, s in found
        ]

    def solved(self, outcome: Outcome, values: Sequence[float]) -> bool:
        """Right by every `answer` and `calls` reward, with a final, through calls that all ran without an error."""
        found = zip(values, self.settings, strict=True)
        judged = [value for value, setting in found if isinstance(setting, kinds.AnswerReward | kinds.CallsReward)]
        ran = bool(outcome.called) and not any(called.result.fault for called in outcome.called)
        return ran and answer_of(outcome.completion) is not None and all(value == 1 for value in judged)

    def total(self, values: Sequence[float]) -> float:
        return sum(value * weight for value, weight in zip(values, self.weights, strict=True))

    def close(self) -> None:
        self._scorers.close()

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _value(self, name: str, setting: RewardSettings, outcome: Outcome) -> float | None:
        found = judge(setting, outcome, self._scorers)
        if not isinstance(found, Score):
            return found
        if found.outcome == "failed":
            self.failures[name] += 1
            self.causes.setdefault(name, found.detail)
            return 0.0
        return found.value


@singledispatch
def judge(setting: RewardSettings, outcome: Outcome, scorers: Scorers) -> float | Score | None:
    """One reward of an outcome, before its weight: from 0 to 1, or None where the row has no truth for it.

    A function for each class of settings, registered by the annotation of its first argument.
    """
    raise AssertionError(f"no function judges {type(setting).__name__}")


@judge.register
def _channel(setting: kinds.ChannelReward, outcome: Outcome, scorers: Scorers) -> float:
    """Every rule of the checker is kept, in all actions."""
    return float(outcome.completion.ok and outcome.completion.stop in ("return", "call"))


@judge.register
def _compared(setting: kinds.AnswerReward | kinds.FunctionReward, outcome: Outcome, scorers: Scorers) -> Score | None:
    scorer = _scorer(setting, outcome)
    return None if scorer is None else _score(scorer, outcome, scorers)


@judge.register
def _calls(setting: kinds.CallsReward, outcome: Outcome, scorers: Scorers) -> float:
    calls = outcome.completion.calls
    expected = outcome.reference.calls
    if not calls:
        return float(expected == () and answer_of(outcome.completion) is not None)
    if "valid" in setting.need and outcome.completion.codes & TOOL_CODES:
        return 0.0
    known = "right" in setting.need and expected is not None
    if known and scorers.score("calls", outcome.completion, outcome.reference).value < 1:
        return 0.0
    ran = len(outcome.called) == len(calls) and not any(called.result.fault for called in outcome.called)
    return float(ran or "succeeded" not in setting.need)


@judge.register
def _length(setting: kinds.LengthReward, outcome: Outcome, scorers: Scorers) -> float:
    """1 where the analysis has the tokens of its effort's budget; less by `slope` times the distance to it, as a share
    of the budget's nearer end."""
    if not outcome.completion.ok or outcome.effort not in setting.budgets:
        return 0.0
    final = answer_of(without_echo(outcome.completion, outcome.reference.prompt))
    if final is None or not final.strip():
        return 0.0
    least, most = setting.budgets[outcome.effort]
    n = outcome.completion.n_tokens_by_channel["analysis"]
    missing = (least - n) / least if n < least else max(0, n - most) / most
    return max(0.0, 1.0 - setting.slope * missing)


@judge.register
def _language(setting: kinds.LanguageReward, outcome: Outcome, scorers: Scorers) -> float:
    """Share of letters in the language, up to the share that is asked for. Too few letters, or no answer: 0."""
    completion = outcome.completion
    final = answer_of(without_echo(completion, outcome.reference.prompt))
    if final is None or not final.strip():
        return 0.0
    shares = language_shares(final if setting.channel == "final" else completion.analysis or "")
    found = shares.get(setting.language, 0.0)
    return 0.0 if not shares else min(1.0, found / setting.share) if setting.share else 1.0


@judge.register
def _json(setting: kinds.JsonReward, outcome: Outcome, scorers: Scorers) -> float | Score:
    """The final is JSON, valid for the row's schema; where the row has none, an object or a list that is not empty."""
    final = answer_of(outcome.completion)
    if final is None:
        return 0.0
    if outcome.reference.schema is not None:
        return scorers.score("schema", outcome.completion, outcome.reference)
    try:
        value = json.loads(final)
    except (ValueError, RecursionError):
        return 0.0
    return float(isinstance(value, dict | list) and bool(value))


def _check_language(name: str, setting: kinds.LanguageReward) -> None:
    if setting.language not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise ConfigError(f"reward {name}: language `{setting.language}` is not told apart: take one of {known}")
    if not is_known():
        raise ConfigError(f"reward {name} needs {PACKAGE}: pip install 'counterpoint[eval]'")


def _scorer(setting: kinds.AnswerReward | kinds.FunctionReward, outcome: Outcome) -> str | None:
    """The comparison of an `answer` or `function` reward; None where the row names none."""
    if isinstance(setting, kinds.FunctionReward):
        return setting.function
    return setting.scorer or outcome.scorer or default_scorer(outcome.reference)


def _score(scorer: str, outcome: Outcome, scorers: Scorers) -> Score | None:
    """None where the row lacks what the comparison needs."""
    completion = outcome.completion
    if ":" not in scorer:  # the user's own function reads the unchanged completion
        completion = without_echo(completion, outcome.reference.prompt)
    try:
        return scorers.score(scorer, completion, outcome.reference)
    except MissingTruthError:
        return None


def zero_variance_share(values: Sequence[float], group: int) -> float:
    """Share of groups of `group` neighbours in which all values are equal: those give no gradient."""
    groups = [values[i : i + group] for i in range(0, len(values), group)]
    return sum(max(g) - min(g) < 1e-9 for g in groups) / len(groups) if groups else 0.0


def without_echo(completion: Completion, prompt: str) -> Completion:
    """The completion with the prompt cut out of its final: what repeats the question is no answer.

    Case, white space and the prompt's last punctuation make no difference. Only whole words are cut: "ok" is not cut
    out of "book", nor "42?" out of "42.5".
    """
    words = prompt.rstrip(" \n\t.?!:").split()
    # No match is shorter than its words with a blank between: a longer prompt needs no search.
    if completion.final is None or not words or len(" ".join(words)) > len(completion.final):
        return completion
    pattern = r"\s+".join(map(re.escape, words))
    echo = re.compile(rf"(?<!\w){pattern}(?!\w|[.,]\d)[.?!:]*", re.IGNORECASE)
    return replace(completion, final=echo.sub(" ", completion.final))


def _names(settings: Sequence[RewardSettings]) -> tuple[str, ...]:
    """A name each; those of the same name are numbered."""
    names: list[str] = []
    for setting in settings:
        name = setting.name or setting.type
        taken = sum(other == name or other.startswith(f"{name}_") for other in names)
        names.append(f"{name}_{taken + 1}" if taken else name)
    return tuple(names)
