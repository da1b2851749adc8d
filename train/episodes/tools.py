"""The tools that a model can call while it is sampled: Python functions, MCP servers, and the built-in `python`.

Whatever a tool does (raise, hang, flood, not exist), the model gets a result, and sampling continues.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from counterpoint.configs.errors import ConfigError
from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.completion import ToolCall
from counterpoint.data.user_code.fork_server import Caller
from counterpoint.data.user_code.loader import resolve
from counterpoint.data.user_code.preloaded import Preloaded, Served
from counterpoint.train.episodes.environment import Done, ToolError
from counterpoint.train.episodes.function_schema import described, text_of, validated
from counterpoint.train.episodes.sandbox import PythonSandbox, SandboxLimits
from counterpoint.train.sampling.rollout import Fault, ToolResult


class Provider(Protocol):
    """Something that declares tools and runs calls to them, once for each episode or for all."""

    tools: tuple[Tool, ...]
    builtin_tools: tuple[str, ...]

    def call(self, call: ToolCall) -> ToolResult | None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """An environment ends the episode. earned: what it earns by name; None asks `Environment.reward`."""

    text: str
    earned: Mapping[str, float] | None


class EpisodeEnded(Exception):  # noqa: N818
    """A tool of an environment, or its user, ends the episode."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.text)
        self.ended = ended


class InvalidRolloutError(Exception):
    """The environment failed, so that the rollout says nothing. trace: of the user's code, or empty."""

    def __init__(self, why: str, trace: str = "") -> None:
        super().__init__(why)
        self.trace = trace


class FunctionTools:
    """Python functions named `module:function` or `file.py:function`, loaded once in a worker process.

    The tool's name is the function's, its description the docstring's first paragraph, its schema the signature's (by
    pydantic). Arguments are validated before the call. ConfigError for a function that cannot be read or described.
    """

    def __init__(self, functions: Sequence[str], seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.worker = Preloaded(f"{__name__}:LoadedFunctions", list(functions))
        try:
            self.tools: tuple[Tool, ...] = self.worker.described()
        except ConfigError:
            self.worker.close()
            raise

    def session(self) -> FunctionSession:
        return FunctionSession(self)

    def close(self) -> None:
        self.worker.close()


class FunctionSession:
    """The functions of one rollout: they run in a process of its own, forked at the first call, so that what they keep
    is kept for the rollout's next call and is not seen by another one."""

    builtin_tools: tuple[str, ...] = ()

    def __init__(self, loaded: FunctionTools) -> None:
        self.tools, self._loaded = loaded.tools, loaded
        self._names = {tool.name for tool in loaded.tools}
        self._served: Served | None = None

    def call(self, call: ToolCall) -> ToolResult | None:
        if call.name not in self._names or call.namespace not in ("functions", None):
            return None
        if call.arguments is None:
            return ToolResult("error: the arguments are not a JSON object", "bad_arguments")
        if self._served is None or self._served.gone:
            self._served = self._loaded.worker.open()
        answer = self._served.call("call", call.name, call.arguments, seconds=self._loaded.seconds)
        if answer.failure is not None:
            return ToolResult(f"error: {answer.detail}", answer.failure, trace=answer.trace)
        return answer.value

    def abort(self) -> None:
        if self._served is not None:
            self._served.abort()

    def close(self) -> None:
        if self._served is not None:
            self._served.close()


class LoadedFunctions:
    """The worker's side: the functions by name."""

    def __init__(self, functions: Sequence[str]) -> None:
        self.functions: dict[str, Any] = {}
        tools = []
        for where in functions:
            function = resolve(where)
            tools.append(described(function))
            if tools[-1].name in self.functions:
                raise ConfigError(f"tools: two functions are named `{tools[-1].name}`: rename one of them")
            self.functions[tools[-1].name] = function
        self.tools = tuple(tools)

    def described(self) -> tuple[Tool, ...]:
        return self.tools

    def new(self, caller: Caller) -> RunningFunctions:
        return RunningFunctions(self.functions, caller)


@dataclass(frozen=True)
class RunningFunctions:
    """The functions in the process of one rollout."""

    functions: Mapping[str, Any]
    caller: Caller

    def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        return result_of(self.functions[name], arguments, self.caller.run)


def result_of(
    function: Any, arguments: dict[str, Any], run: Callable[..., Any], bound: Callable[..., Any] | None = None
) -> ToolResult:
    """What the model reads of a call, whatever the function does. bound: the function with its `self`, of a method.

    An exception passes that is none of `Exception`, and `Done`.
    """
    try:
        given = validated(function, arguments, method=bound is not None)
    except Exception as error:
        return ToolResult(f"error: {type(error).__name__}: {error}"[:300], "bad_arguments")
    try:
        return capped(text_of(run(bound or function, **given)))
    except ToolError as error:
        return capped(f"error: {error}")
    except Done:
        raise
    except Exception as error:
        told = f"error: {type(error).__name__}: {error}"[:300]
        return ToolResult(told, "raised", trace=traceback.format_exc())


class BuiltinPython:
    """gpt-oss's `python` tool in a sandbox. ConfigError where no sandbox can run."""

    tools: tuple[Tool, ...] = ()
    builtin_tools: tuple[str, ...] = ("python",)

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self.sandbox = PythonSandbox(limits)

    def call(self, call: ToolCall) -> ToolResult | None:
        if call.recipient != "python":
            return None
        ran = self.sandbox.run(_code_of(call))
        fault: Fault | None = {"raised": "raised", "hung": "hung", "died": "died"}.get(ran.failed or "")  # pyright: ignore
        return ToolResult(ran.output, fault)

    def close(self) -> None:
        self.sandbox.close()


class Toolbox:
    """Several providers as one. Close it, or use it as a context manager."""

    def __init__(self, providers: Sequence[Provider]) -> None:
        self.providers = tuple(providers)
        self.tools = tuple(tool for provider in providers for tool in provider.tools)
        self.builtin_tools = tuple(name for provider in providers for name in provider.builtin_tools)
        names = [tool.name for tool in self.tools]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"tools: `{twice[0]}` is declared twice: rename one of them")

    def call(self, call: ToolCall) -> ToolResult:
        """The result of a call; never raises for what a tool or a model does, and its text can be written. Where the
        tool is an environment's: EpisodeEnded, InvalidRolloutError."""
        for provider in self.providers:
            try:
                result = provider.call(call)
            except (EpisodeEnded, InvalidRolloutError):
                raise
            except Exception as error:
                result = ToolResult(f"error: {type(error).__name__}: {error}"[:300], "raised")
            if result is not None:
                return capped(result.content.encode("utf-8", "replace").decode(), result)
        known = ", ".join([f"functions.{tool.name}" for tool in self.tools] + list(self.builtin_tools)) or "none"
        return ToolResult(f"error: there is no tool `{call.recipient}`; tools: {known}", "unknown_tool")

    def abort(self) -> None:
        """A function in progress fails now; from any thread."""
        for provider in self.providers:
            if isinstance(provider, FunctionSession):
                provider.abort()

    def close(self) -> None:
        for provider in self.providers:
            provider.close()

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _code_of(call: ToolCall) -> str:
    """The code itself, or the one string of `{"code": "..."}`, which models write as well."""
    if call.arguments is not None and len(call.arguments) == 1:
        only = next(iter(call.arguments.values()))
        if isinstance(only, str):
            return only
    return call.arguments_text


def capped(content: str, of: ToolResult | None = None) -> ToolResult:
    """At most `of.most` characters, and how many were cut."""
    of = of or ToolResult("")
    cut = len(content) - of.most
    if cut <= 0 or of.cut:
        return replace(of, content=content)
    shown = f"{content[: of.most]}\n[{cut} more characters cut]"
    return replace(of, content=shown, cut=cut)
