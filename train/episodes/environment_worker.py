"""The worker's side of an environment: loads the class, and runs the methods of one instance for one rollout."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.data.conversation import Conversation, Tool
from counterpoint.data.user_code.fork_server import Caller
from counterpoint.data.user_code.loader import resolve
from counterpoint.data.user_code.numbers import earned
from counterpoint.train.episodes.environment import Context, Done, Environment
from counterpoint.train.episodes.function_schema import described
from counterpoint.train.episodes.tools import Ended, result_of
from counterpoint.train.sampling.rollout import Rollout, ToolResult


@dataclass(frozen=True, slots=True)
class Facts:
    """What a context says, as it travels to the instance."""

    seed: int = 0
    sample: int = 0
    step: int = 0
    effort: str = "medium"
    training: bool = False


@dataclass(frozen=True, slots=True)
class Described:
    """What the loaded class says of itself. responds, rewards, closes: whether it has methods of its own for that."""

    tools: tuple[Tool, ...]
    seconds: float
    responds: bool
    rewards: bool
    closes: bool


class LoadedEnvironment:
    """The class, set up once. ConfigError for one that is no environment or whose tools cannot be described."""

    def __init__(self, where: str, settings: dict[str, Any]) -> None:
        found: Any = resolve(where)
        if not (isinstance(found, type) and issubclass(found, Environment)):
            raise ConfigError(f"environment `{where}`: derive the class from `counterpoint.Environment`")
        self.cls: type[Environment] = found
        self.tools = dict(_tools(found))
        self.template = found()
        Caller.alone().run(self.template.setup, settings)
        if "numpy" in sys.modules:
            # Each instance seeds it, and it is imported at its first use: 55 ms of CPU in every one of them.
            import numpy.random  # noqa: F401  # pyright: ignore[reportUnusedImport]

    def described(self) -> Described:
        tools = tuple(described(method, self.cls.__name__) for method in self.tools.values())
        own = self.cls
        return Described(
            tools,
            float(self.template.seconds),
            own.respond is not Environment.respond,
            own.reward is not Environment.reward,
            own.close is not Environment.close,
        )

    def new(self, caller: Caller) -> Instance:
        instance = self.cls()
        for name, value in vars(self.template).items():
            vars(instance).setdefault(name, value)  # what `setup` has loaded
        return Instance(instance, self.tools, caller)


class Instance:
    """One rollout's environment. Answers are plain values, since classes of the user's file are known here only."""

    def __init__(self, env: Environment, tools: Mapping[str, Any], caller: Caller) -> None:
        self.env, self.tools, self.caller = env, tools, caller
        self.ctx: Context | None = None

    def reset(self, row: dict[str, Any], facts: Facts) -> str | list[Any] | Conversation | None:
        if self.caller.forked:  # libraries that draw from global generators meet the same world, too
            random.seed(facts.seed)
            if (numpy_random := sys.modules.get("numpy.random")) is not None:
                numpy_random.seed(facts.seed % 2**32)
        self.ctx = Context(facts.seed, facts.sample, facts.step, facts.effort, facts.training, _asks=self.caller.ask)
        asked = self._run(self.env.reset, row)
        if asked is not None and not isinstance(asked, str | list | Conversation):
            raise TypeError(f"reset returned {type(asked).__name__}: return a text, messages, a Conversation or None")
        return asked

    def tool(self, name: str, arguments: dict[str, Any]) -> ToolResult | Ended:
        method = self.tools[name]
        try:
            return result_of(method, arguments, self._run, bound=method.__get__(self.env))
        except Done as done:
            return _ended(done)

    def respond(self, final: str, turn: int) -> str | Ended | None:
        assert self.ctx is not None
        self.ctx.turn = turn
        try:
            said = self._run(self.env.respond, final)
        except Done as done:
            return _ended(done)
        if said is not None and not isinstance(said, str):
            raise TypeError(f"respond returned {type(said).__name__}: return the user's next text, or None")
        return said

    def reward(self, rollout: Rollout) -> dict[str, float]:
        return earned(self._run(self.env.reward, replace(rollout, env=self.env)))

    def close(self) -> None:
        self.caller.run(self.env.close)

    def _run(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if "ctx" in inspect.signature(method).parameters:
            kwargs["ctx"] = self.ctx
        return self.caller.run(method, *args, **kwargs)


def _ended(done: Done) -> Ended:
    return Ended(str(done.text), None if done.reward is None else earned(done.reward))


def _tools(cls: type[Environment]) -> Iterator[tuple[str, Any]]:
    """The public methods of a class and of those it derives from, in the order of their definition."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(Environment)]):
        for name, value in vars(base).items():
            if not name.startswith("_") and name not in vars(Environment) and callable(getattr(cls, name)):
                found[name] = value
    yield from found.items()
