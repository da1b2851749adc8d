"""Rewards of a rollout: small functions on the typed result, combined with weights. Ours are numbers from 0 to 1.

Only a finished, single final is an answer. A reward for format (length, language, JSON) is given to answers alone, and
with an `answer` reward it is scaled by that one: an empty answer, junk, an echo of the prompt, or an answer left in the
analysis earns nothing.
"""

from __future__ import annotations

import copy
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch

from counterpoint.configs import reward_section as kinds
from counterpoint.configs.errors import ConfigError
from counterpoint.configs.reward_section import RewardSettings
from counterpoint.data.harmony.codes import TOOL_CODES
from counterpoint.data.harmony.completion import Completion
from counterpoint.train.scoring.function_rewards import Found, RewardFunction, Scored, check_gates, scored
from counterpoint.train.scoring.judges import judge_of
from counterpoint.train.scoring.languages import LANGUAGES, PACKAGE, is_known, language_shares
from counterpoint.train.scoring.outcome import Outcome
from counterpoint.train.scoring.prompts import default_scorer
from counterpoint.train.scoring.scorers import MissingTruthError, Score, Scorers, answer_of


class Rewards:
    """The rewards of a run file. Close it, or use it as a context manager: user code runs in a child process.

    failures: how often each reward's own code raised, hung or gave no number. causes: of each such reward, the first
    one in words, with the traceback of a function of the user's. ConfigError for a gate that is no reward, and for a
    judge or a grader that cannot be used.
    """

    def __init__(self, settings: Sequence[RewardSettings], seconds: float = 10.0, environment: bool = False) -> None:
        self.settings = tuple(settings)
        self.names = named(self.settings)
        self.weights = tuple(setting.weight for setting in self.settings)
        self.failures: Counter[str] = Counter()
        self.causes: dict[str, str] = {}
        self._lock = threading.Lock()
        self._scorers = Scorers(seconds)
        check_gates(self.names, self.settings, environment)
        each = list(zip(self.names, self.settings, strict=True))
        self._functions = {n: RewardFunction(s, n) for n, s in each if isinstance(s, kinds.FunctionReward)}
        self._judges = {name: made for name, setting in each if (made := judge_of(setting, name)) is not None}

    def unjudged(self, outcomes: Sequence[Outcome]) -> dict[str, int]:
        """Of outcomes without a completion, one a turn: how many have no truth for each reward that needs one.

        ConfigError for an unknown comparison, a missing package, a missing function, or what no row has.
        """
        missing: dict[str, int] = {}
        checked: set[str] = set()
        for name, setting in zip(self.names, self.settings, strict=True):
            if isinstance(setting, kinds.LanguageReward):
                _check_language(name, setting)
            if isinstance(setting, kinds.FunctionReward):
                self._functions[name].check()
            if name in self._judges:
                lacks = [self._judges[name].missing(outcome) for outcome in outcomes]
                if lacks and None not in lacks:
                    raise ConfigError(f"reward {name}: no row has {lacks[0]}")
                missing[name] = sum(each is not None for each in lacks)
            if not isinstance(setting, kinds.AnswerReward):
                continue
            asked = [_scorer(setting, outcome) for outcome in outcomes]
            for scorer in {scorer for scorer in asked if scorer is not None} - checked:
                try:
                    self._scorers.check(scorer)
                except ConfigError as error:
                    raise ConfigError(f"reward {name}: {error}") from None
                checked.add(scorer)
            missing[name] = sum(self._is_missing(s, o) for s, o in zip(asked, outcomes, strict=True))
        return missing

    def _is_missing(self, scorer: str | None, outcome: Outcome) -> bool:
        return scorer is None or (":" not in scorer and _score(scorer, outcome, self._scorers) is None)

    def counted_apart(self) -> Rewards:
        """The same rewards, whose failures and causes are counted by themselves."""
        other = copy.copy(self)
        other.failures, other.causes = Counter(), {}
        return other

    def score(self, outcome: Outcome) -> list[float]:
        """One number a reward, in their order, before weights: NaN for one that does not apply, or that failed."""
        return self.finish([outcome], [self.begin(outcome)], 1)[0].values

    def begin(self, outcome: Outcome) -> list[Found]:
        """What can be said of one rollout alone. Called in the rollout's own thread."""
        each = zip(self.names, self.settings, strict=True)
        return [self._found(name, setting, outcome) for name, setting in each]

    def finish(self, outcomes: Sequence[Outcome], begun: Sequence[list[Found]], group: int) -> list[Scored]:
        """The numbers of a step's rollouts, `group` neighbours of one prompt, with what is said of several together."""
        for place, (name, setting) in enumerate(zip(self.names, self.settings, strict=True)):
            if isinstance(setting, kinds.FunctionReward) and setting.per != "rollout":
                size = group if setting.per == "group" else len(outcomes)
                found = self._functions[name].together([outcome.rollout for outcome in outcomes], size)
                for values, each in zip(begun, found, strict=True):
                    values[place] = self._counted(name, each)
        return [
            scored(self.names, self.settings, values, outcome.earned)
            for outcome, values in zip(outcomes, begun, strict=True)
        ]

    def solved(self, outcome: Outcome, values: Sequence[float]) -> bool:
        """Right by every `answer` and `calls` reward, with a final, through calls that all ran without an error."""
        found = zip(values, self.settings, strict=True)
        judged = [value for value, setting in found if isinstance(setting, kinds.AnswerReward | kinds.CallsReward)]
        ran = bool(outcome.called) and not any(called.result.fault for called in outcome.called)
        return ran and answer_of(outcome.completion) is not None and all(value == 1 for value in judged)

    @property
    def notes(self) -> list[str]:
        """What a user should know before rollouts are paid."""
        return [note for each in self._judges.values() for note in each.notes]

    @property
    def spent(self) -> dict[str, int]:
        """Tokens that models were asked with, by reward."""
        return {name: each.asking.spent for name, each in self._judges.items() if each.asking is not None}

    @property
    def stopped(self) -> str | None:
        """Why the run should end: a judge has taken all tokens that it may."""
        asked = [each.asking for each in self._judges.values() if each.asking is not None]
        return next((each.stopped for each in asked if each.stopped is not None), None)

    def total(self, values: Sequence[float]) -> float:
        """The weighted sum of what applies."""
        weighed = zip(values, self.weights, strict=True)
        return sum(value * weight for value, weight in weighed if not math.isnan(value))

    def close(self) -> None:
        self._scorers.close()
        for each in (*self._functions.values(), *self._judges.values()):
            each.close()

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found(self, name: str, setting: RewardSettings, outcome: Outcome) -> Found:
        if isinstance(setting, kinds.FunctionReward):
            if setting.per != "rollout":
                return Found(None)
            completion, reference = outcome.completion, outcome.reference
            return self._counted(name, self._functions[name].one(outcome.rollout, completion, reference))
        if name in self._judges:
            return self._counted(name, self._judges[name].one(outcome))
        with self._lock:  # one process for all scorers
            found = judge(setting, outcome, self._scorers)
        if not isinstance(found, Score):
            return Found(0.0 if found is None else found, applies=found is not None)
        if found.outcome == "failed":  # a final that our scorers cannot read is the model's fault
            self._counted(name, Found(None, failed=found.detail))
            return Found(0.0)
        return Found(found.value)

    def _counted(self, name: str, found: Found) -> Found:
        if found.failed is not None:
            with self._lock:
                self.failures[name] += 1
                self.causes.setdefault(name, found.failed)
        return found


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
def _compared(setting: kinds.AnswerReward, outcome: Outcome, scorers: Scorers) -> Score | None:
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
def _overlong(setting: kinds.OverlongReward, outcome: Outcome, scorers: Scorers) -> float:
    over = len(outcome.completion.ids) - (setting.longest - setting.buffer)
    return -min(1.0, max(0, over) / setting.buffer)


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


def _scorer(setting: kinds.AnswerReward, outcome: Outcome) -> str | None:
    """The comparison of an `answer` reward; None where the row names none."""
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
    groups = [[v for v in values[i : i + group] if not math.isnan(v)] for i in range(0, len(values), group)]
    return sum(not g or max(g) - min(g) < 1e-9 for g in groups) / len(groups) if groups else 0.0


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


def named(settings: Sequence[RewardSettings]) -> tuple[str, ...]:
    """A name each; those of the same name are numbered."""
    names: list[str] = []
    for setting in settings:
        name = setting.name or setting.type
        taken = sum(other == name or other.startswith(f"{name}_") for other in names)
        names.append(f"{name}_{taken + 1}" if taken else name)
    return tuple(names)
