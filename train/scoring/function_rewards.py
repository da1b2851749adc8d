"""Rewards that are functions of the user's, and how the values of all rewards become the numbers of a rollout."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from counterpoint.configs import reward_section as kinds
from counterpoint.configs.errors import ConfigError
from counterpoint.configs.reward_section import FunctionReward, RewardSettings
from counterpoint.data.harmony.completion import Completion
from counterpoint.data.user_code.fork_server import Caller
from counterpoint.data.user_code.loader import resolve
from counterpoint.data.user_code.numbers import earned
from counterpoint.data.user_code.preloaded import Preloaded, Returned, Served
from counterpoint.train.sampling.rollout import Rollout
from counterpoint.train.scoring.scorers import Reference

ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Found:
    """One reward of a rollout. value: None where there is none: it does not apply, or `failed` says what happened.
    applies: whether the row has a truth for it. parts: a function's numbers by name. tokens: that a model was asked
    with, those of cached answers aside."""

    value: float | None
    failed: str | None = None
    applies: bool = True
    parts: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """All rewards of a rollout, gates applied: NaN for one that does not apply. invalid: why nothing is learned from
    the rollout. tokens: that models were asked with."""

    values: list[float]
    invalid: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0


def scored(
    names: Sequence[str], settings: Sequence[RewardSettings], found: Sequence[Found], given: Mapping[str, float]
) -> Scored:
    """The rewards of a rollout, from what each function said. given: of its environment, by name."""
    failed = [f"reward {name}: {each.failed}" for name, each in zip(names, found, strict=True) if each.failed]
    known = {name: each.value or 0.0 for name, each in zip(names, found, strict=True)}
    known |= {f"{ENVIRONMENT}/{name}" if name else ENVIRONMENT: value for name, value in given.items()}
    answers = zip(found, settings, strict=True)
    right = math.prod(f.value or 0.0 for f, s in answers if isinstance(s, kinds.AnswerReward) and f.applies)
    values = []
    for setting, each in zip(settings, found, strict=True):
        factor = right if isinstance(setting, kinds.GatedReward) and setting.gated and each.applies else 1.0
        if setting.gate is not None:
            factor *= known.get(setting.gate, 0.0)
        values.append(math.nan if each.value is None else each.value * factor)
    parts = {f"{name}/{key}": v for name, each in zip(names, found, strict=True) for key, v in each.parts.items()}
    return Scored(values, failed[0] if failed else None, parts, sum(each.tokens for each in found))


def check_gates(names: Sequence[str], settings: Sequence[RewardSettings], environment: bool) -> None:
    """ConfigError for a gate that names no other reward."""
    for name, setting in zip(names, settings, strict=True):
        others = [other for other in names if other != name]
        gate = setting.gate
        if gate is None or gate in others or (environment and gate.partition("/")[0] == ENVIRONMENT):
            continue
        known = ", ".join([*others, *([f"{ENVIRONMENT}/NAME"] if environment else [])]) or "there is none"
        raise ConfigError(f"reward {name}: gate: no other reward is named `{gate}`: take one of {known}")


class RewardFunction:
    """One function in a pool of processes that are forked from a worker which has loaded it. Thread-safe; close it.

    ConfigError for a function that cannot be loaded, or has neither one parameter nor two.
    """

    def __init__(self, settings: FunctionReward, name: str) -> None:
        self.settings = settings
        self._worker = Preloaded(f"{__name__}:LoadedReward", settings.function, settings.per != "rollout")
        self._free = threading.Semaphore(settings.workers)
        self._lock = threading.Lock()
        self._idle: list[Served] = []
        self._name = name
        self._pairs: bool | None = None

    def check(self) -> None:
        """ConfigError where it cannot be used."""
        try:
            self._pairs = self._worker.described()
        except ConfigError as error:
            raise ConfigError(f"reward {self._name}: {error}") from None

    def one(self, rollout: Rollout | None, completion: Completion, reference: Reference) -> Found:
        if self._pairs is None:
            self.check()
        answer = self._called("pair", completion, reference) if self._pairs else self._called("one", rollout)
        return self._found(answer.value) if answer.failure is None else _failed(answer)

    def together(self, rollouts: Sequence[Rollout | None], size: int) -> list[Found]:
        """Of all rollouts, called with `size` neighbours at a time."""
        groups = [list(rollouts[i : i + size]) for i in range(0, len(rollouts), size)]
        with ThreadPoolExecutor(len(groups)) as pool:
            answers = list(pool.map(lambda group: self._called("many", group), groups))
        found: list[Found] = []
        for group, answer in zip(groups, answers, strict=True):
            found += [_failed(answer)] * len(group) if answer.failure else [self._found(each) for each in answer.value]
        return found

    def close(self) -> None:
        self._worker.close()

    def _called(self, method: str, *args: Any) -> Returned:
        with self._free:
            with self._lock:
                served = self._idle.pop() if self._idle else None
            served = served or self._worker.open()
            answer = served.call(method, *args, seconds=self.settings.seconds)
            if not served.gone:
                with self._lock:
                    self._idle.append(served)
        return answer

    def _found(self, numbers: Mapping[str, float]) -> Found:
        least, most = self.settings.range or (-math.inf, math.inf)
        outside = [value for value in numbers.values() if not least <= value <= most]
        if outside:
            return Found(None, failed=f"a reward of {outside[0]:g}, outside of `range` ({least:g} to {most:g})")
        parts = {name: value for name, value in numbers.items() if name}
        return Found(sum(numbers.values()) if numbers else None, parts=parts)


def _failed(answer: Returned) -> Found:
    return Found(None, failed="\n".join(filter(None, (answer.detail, answer.trace.rstrip()))))


class LoadedReward:
    """The worker's side."""

    def __init__(self, where: str, several: bool) -> None:
        self.function = resolve(where)
        parameters = inspect.signature(self.function).parameters.values()
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = [each for each in parameters if each.kind in by_place and each.default is each.empty]
        takes_more = any(each.kind is each.VAR_POSITIONAL for each in parameters)
        self.pairs = not several and (len(needed) == 2 or (takes_more and len(needed) < 2))
        if len(needed) != 1 and not self.pairs and not (several and takes_more and not needed):
            two = "" if several else " the rollout, or two: completion and reference"
            raise ConfigError(
                f"function `{where}`: {len(needed)} parameters: give it one,{two or ' a list of rollouts'}"
            )

    def described(self) -> bool:
        """Whether it takes a completion and a reference."""
        return self.pairs

    def new(self, caller: Caller) -> RunningReward:
        return RunningReward(self.function, caller)


@dataclass(frozen=True)
class RunningReward:
    """The function in one process of the pool."""

    function: Any
    caller: Caller

    def one(self, rollout: Rollout) -> dict[str, float]:
        return earned(self.caller.run(self.function, rollout))

    def pair(self, completion: Completion, reference: Reference) -> dict[str, float]:
        return earned(self.caller.run(self.function, completion, reference))

    def many(self, rollouts: list[Rollout]) -> list[dict[str, float]]:
        values = list(self.caller.run(self.function, rollouts))
        if len(values) != len(rollouts):
            raise ValueError(f"{len(values)} rewards for {len(rollouts)} rollouts: return one for each, in their order")
        return [earned(value) for value in values]
