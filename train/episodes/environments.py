"""The program's side of an environment: a session for each rollout, and what is made of its faults."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from counterpoint.configs.environment_section import InstanceSettings, UserSettings
from counterpoint.configs.errors import RowError, RunError
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.completion import ToolCall
from counterpoint.data.user_code.preloaded import Preloaded, Returned
from counterpoint.train.episodes.environment_worker import Described, Facts
from counterpoint.train.episodes.sandbox import PythonSandbox, Ran
from counterpoint.train.episodes.tools import Ended, EpisodeEnded, InvalidRolloutError
from counterpoint.train.episodes.user_model import UserModel
from counterpoint.train.sampling.rollout import Rollout, ToolResult

LOADED = "counterpoint.train.episodes.environment_worker:LoadedEnvironment"


class Environments:
    """The class of a run file, loaded in its workers. ConfigError where it cannot be. Close it, or use it as a context
    manager."""

    def __init__(self, settings: InstanceSettings, user: UserSettings | None = None) -> None:
        self.settings = settings
        self.user = None if user is None else UserModel(user)
        self._workers = [
            Preloaded(LOADED, settings.class_name, dict(settings.settings), shared=settings.isolation == "shared")
            for _ in range(settings.workers)
        ]
        self._next = itertools.cycle(self._workers)
        try:
            self.described: Described = self._workers[0].described()
        except BaseException:
            self.close()
            raise
        for worker in self._workers:
            worker.patience = self.described.seconds

    def session(self) -> EnvironmentSession:
        return EnvironmentSession(self, next(self._next))

    def weigh(self, earned: Mapping[str, float]) -> float:
        return sum(value * self.settings.weights.get(name, 1.0) for name, value in earned.items())

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        if self.user is not None:
            self.user.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EnvironmentSession:
    """The instance of one rollout. Its methods raise InvalidRolloutError for what the fault table calls invalid.

    sandbox: gives the session of the built-in `python` tool, where the rollout has one.
    """

    builtin_tools: tuple[str, ...] = ()

    def __init__(self, owner: Environments, worker: Preloaded) -> None:
        self.described, self._user = owner.described, owner.user
        self.tools = owner.described.tools
        self.sandbox: Callable[[], PythonSandbox | None] = lambda: None
        self._own_sandbox: PythonSandbox | None = None
        self._names = {tool.name for tool in self.tools}
        self._failed: str | None = None
        self._served = worker.open()

    def reset(self, prompt: Conversation, row: Mapping[str, Any], facts: Facts) -> Conversation:
        """What the model is asked, with the environment's tools declared."""
        asked = self._value(self._call("reset", dict(row), facts), "reset")
        if isinstance(asked, str):
            asked = replace(prompt, messages=(Message("user", asked),), opening_ids=None)
        elif isinstance(asked, list):
            asked = _messages(asked, prompt)
        conversation = asked or prompt
        if not conversation.messages:
            raise InvalidRolloutError("reset returned None, and the row has no prompt of its own: return what is asked")
        tools = tuple(tool for tool in conversation.tools if tool.name not in self._names)
        return replace(conversation, tools=(*tools, *self.tools))

    def call(self, call: ToolCall) -> ToolResult | None:
        """As a `Provider`. EpisodeEnded where the tool raised `Done`."""
        if call.name not in self._names or call.namespace not in ("functions", None):
            return None
        if call.arguments is None:
            return ToolResult("error: the arguments are not a JSON object", "bad_arguments")
        answer = self._call("tool", call.name, call.arguments)
        if answer.failure == "hung":
            return ToolResult(f"error: TimeoutError: {answer.detail}", "hung", trace=answer.trace)
        value = self._value(answer, call.name)
        if isinstance(value, Ended):
            raise EpisodeEnded(value)
        return value

    def respond(self, final: str, turn: int) -> str | None:
        """EpisodeEnded where it raised `Done`."""
        if not self.described.responds:
            return None
        said = self._value(self._call("respond", final, turn), "respond")
        if isinstance(said, Ended):
            raise EpisodeEnded(said)
        return said

    def reward(self, rollout: Rollout) -> dict[str, float]:
        return self._value(self._call("reward", rollout), "reward") if self.described.rewards else {}

    def abort(self) -> None:
        self._served.abort()

    def close(self) -> None:
        if self.described.closes and not self._served.gone:
            self._served.call("close", seconds=self.described.seconds, asked=self._asked)
        self._served.close()
        if self._own_sandbox is not None:
            self._own_sandbox.close()

    def _call(self, method: str, *args: Any) -> Returned:
        answer = self._served.call(method, *args, seconds=self.described.seconds, asked=self._asked)
        if self._failed is not None:
            raise InvalidRolloutError(f"the user model: {self._failed}")
        return answer

    def _value(self, answer: Returned, method: str) -> Any:
        if answer.failure is not None:
            raise InvalidRolloutError(f"{method}: {answer.detail}", answer.trace)
        return answer.value

    def _asked(self, what: str, *args: Any) -> str | Ran:
        """What a context wants in the middle of a call."""
        if what == "python":
            sandbox = self.sandbox()
            if sandbox is None:
                sandbox = self._own_sandbox = self._own_sandbox or PythonSandbox()
            return sandbox.run(*args)
        try:
            if self._user is None:
                raise RunError("there is none: set `rollout.user.url`")
            return self._user.ask(*args)
        except RunError as error:
            self._failed = str(error)
            raise


def _messages(messages: Sequence[Any], prompt: Conversation) -> Conversation:
    """The prompt with these chat messages, system messages as instructions."""
    try:
        said = convert({"messages": messages})
    except RowError as error:
        raise InvalidRolloutError(f"reset: {error}") from None
    assert isinstance(said, Conversation)
    instructions = said.instructions if said.instructions is not None else prompt.instructions
    return replace(prompt, messages=said.messages, instructions=instructions, opening_ids=None)
