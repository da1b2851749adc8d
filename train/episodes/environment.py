"""What a task of one's own is written against: a class, its context, and the two exceptions that mean something.

    class Counter(Environment):
        def reset(self, row, ctx):
            self.count = 0
            return f"Count to {row['target']}."

        def add(self, number: int) -> int:
            "Adds a number and shows the sum."
            self.count += number
            return self.count

        def reward(self, rollout, ctx):
            return float(rollout.final == str(self.count) == str(rollout.row["target"]))

This file imports nothing heavy, since `from counterpoint import Environment` is what users' files begin with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterpoint.train.episodes.sandbox import Ran


class ToolError(Exception):
    """Raised in a tool for what the model should read, as `error: TEXT`. It is no fault, and the rollout goes on."""

    def __init__(self, text: str) -> None:
        super().__init__(text)


class Done(Exception):  # noqa: N818
    """Raised in a tool or in `respond`: the episode ends here.

    reward: what it earns, a number or one by name; None asks `Environment.reward`.
    """

    def __init__(self, text: str = "", reward: float | Mapping[str, float] | None = None) -> None:
        super().__init__(text)
        self.text, self.reward = text, reward


class Environment:
    """A task with state: one instance for each rollout, never used again. All methods may be `async`, none is needed.

    Every public method of a derived class is a tool: its signature is the schema, its docstring the description, and
    what it returns is read by the model, as JSON where it is no text. A parameter named `ctx` gets the `Context` and is
    not part of the schema. seconds: limit of each call. shared: for what `setup` loads.

    An exception in a tool, arguments that do not fit and a call without an answer in time are told to the model, and
    counted. Anywhere else they make the rollout invalid: it is left out of its group, and earns nothing, not 0.
    """

    seconds: float = 10.0
    shared: Any = None

    def setup(self, settings: dict[str, Any]) -> Any:
        """Called once in each worker, with the run file's `settings`; what it sets is seen by every instance."""

    def reset(self, row: dict[str, Any], ctx: Context) -> Any:
        """What the model is asked: a text, messages (`[{"role": ..., "content": ...}]`), a `Conversation`, or None for
        the row's own prompt."""

    def respond(self, final: str, ctx: Context) -> Any:
        """What the user says after a final; None ends the episode."""

    def reward(self, rollout: Any, ctx: Context) -> Any:
        """A number, numbers by name, or None; `rollout` is a `Rollout`."""

    def close(self) -> Any:
        """Called at the end, whatever happened before, unless the process is gone."""


@dataclass
class Context:
    """Of one rollout. seed, rng: the same for all samples of a row in a step, so that they meet the same world.

    sample: number in the group. step: of training. turn: user messages before this one. effort: at which the model is
    sampled. training: False where nothing is learned from the rollout.
    """

    seed: int
    sample: int
    step: int
    effort: str
    training: bool
    turn: int = 0
    _asks: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def ask(
        self, messages: Sequence[Mapping[str, str]], model: str | None = None, seed: int = 0, max_tokens: int = 256
    ) -> str:
        """The answer of the model at `rollout.user.url`: a user who is played, or a judge. RuntimeError where there is
        none."""
        assert self._asks is not None
        return self._asks("ask", list(messages), model, seed, max_tokens)

    def python(self, code: str) -> Ran:
        """Run code in the rollout's sandbox: the session that the model's own `python` tool has, where it has one."""
        assert self._asks is not None
        return self._asks("python", code)
