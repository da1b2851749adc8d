"""The tools that a model can call while it is sampled: Python functions, MCP servers, and the built-in `python`.

Whatever a tool does (raise, hang, flood, not exist), the model gets a result, and sampling continues.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, cast

from counterpoint.configs.errors import ConfigError
from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.completion import ToolCall
from counterpoint.data.user_code.loader import resolve
from counterpoint.data.user_code.worker import Worker
from counterpoint.train.episodes.sandbox import PythonSandbox, SandboxLimits
from counterpoint.train.sampling.rollout import Fault, ToolResult

MAX_RESULT_CHARS = 8_000


class Provider(Protocol):
    """Something that declares tools and runs calls to them, once for each episode or for all."""

    tools: tuple[Tool, ...]
    builtin_tools: tuple[str, ...]

    def call(self, call: ToolCall) -> ToolResult | None: ...
    def close(self) -> None: ...


class FunctionTools:
    """Python functions named `module:function` or `file.py:function`, each run in a guarded child process.

    The tool's name is the function's, its description the docstring's first paragraph, its schema the signature's (by
    pydantic). Arguments are validated before the call. ConfigError for a function that cannot be read or described.
    """

    builtin_tools: tuple[str, ...] = ()

    def __init__(self, functions: Sequence[str], seconds: float = 10.0) -> None:
        self._worker = Worker(seconds)
        self._where: dict[str, str] = {}
        tools = []
        for where in functions:
            tool = function_tool(where)
            if tool.name in self._where:
                raise ConfigError(f"tools: two functions are named `{tool.name}`: rename one of them")
            self._where[tool.name] = where
            tools.append(tool)
        self.tools = tuple(tools)

    def call(self, call: ToolCall) -> ToolResult | None:
        where = self._where.get(call.name)
        if where is None or call.namespace not in ("functions", None):
            return None
        if call.arguments is None:
            return ToolResult("error: the arguments are not a JSON object", "bad_arguments")
        answer = self._worker.call(f"{__name__}:run_function", where, call.arguments)
        if answer.failure == "hung":
            return ToolResult(f"error: {answer.detail}", "hung")
        if answer.failure is not None:
            bad = answer.detail.startswith("ValidationError")
            return ToolResult(f"error: {answer.detail}", "bad_arguments" if bad else "raised")
        return ToolResult(str(answer.value))

    def close(self) -> None:
        self._worker.close()


class BuiltinPython:
    """gpt-oss's `python` tool in a sandbox. ConfigError where no sandbox can run."""

    tools: tuple[Tool, ...] = ()
    builtin_tools: tuple[str, ...] = ("python",)

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self._sandbox = PythonSandbox(limits)

    def call(self, call: ToolCall) -> ToolResult | None:
        if call.recipient != "python":
            return None
        ran = self._sandbox.run(_code_of(call))
        fault: Fault | None = {"raised": "raised", "hung": "hung", "died": "died"}.get(ran.failed or "")  # pyright: ignore
        return ToolResult(ran.output, fault)

    def close(self) -> None:
        self._sandbox.close()


class Toolbox:
    """Several providers as one. Close it, or use it as a context manager."""

    def __init__(self, providers: Sequence[Provider]) -> None:
        self._providers = tuple(providers)
        self.tools = tuple(tool for provider in providers for tool in provider.tools)
        self.builtin_tools = tuple(name for provider in providers for name in provider.builtin_tools)
        names = [tool.name for tool in self.tools]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"tools: `{twice[0]}` is declared twice: rename one of them")

    def call(self, call: ToolCall) -> ToolResult:
        """The result of a call; never raises for what a tool or a model does, and its text can be written."""
        for provider in self._providers:
            try:
                result = provider.call(call)
            except Exception as error:
                result = ToolResult(f"error: {type(error).__name__}: {error}"[:300], "raised")
            if result is not None:
                return _capped(result.content.encode("utf-8", "replace").decode(), result.fault)
        known = ", ".join([f"functions.{tool.name}" for tool in self.tools] + list(self.builtin_tools)) or "none"
        return ToolResult(f"error: there is no tool `{call.recipient}`; tools: {known}", "unknown_tool")

    def close(self) -> None:
        for provider in self._providers:
            provider.close()

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def function_tool(where: str) -> Tool:
    """The declaration of a Python function."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    function = resolve(where)
    try:
        schema = cast(Any, TypeAdapter)(function).json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError, NameError) as error:
        raise ConfigError(f"function `{where}`: its signature has no JSON schema ({error}): annotate it") from None
    for parameter in schema.get("properties", {}).values():
        parameter.pop("title", None)
    description = (function.__doc__ or "").strip().split("\n\n")[0]
    return Tool(function.__name__, " ".join(description.split()), schema)


def run_function(where: str, arguments: dict[str, Any]) -> str:
    """Run in the child: validate, call, and write the value as text (JSON for what is no string)."""
    value = _loaded(where)(**arguments)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@cache
def _loaded(where: str) -> Callable[..., Any]:
    """The function with its arguments validated; a file is executed once in a child, as a module is."""
    from pydantic import validate_call

    return validate_call(resolve(where))


def _code_of(call: ToolCall) -> str:
    """The code itself, or the one string of `{"code": "..."}`, which models write as well."""
    if call.arguments is not None and len(call.arguments) == 1:
        only = next(iter(call.arguments.values()))
        if isinstance(only, str):
            return only
    return call.arguments_text


def _capped(content: str, fault: Fault | None = None) -> ToolResult:
    cut = len(content) - MAX_RESULT_CHARS
    if cut <= 0:
        return ToolResult(content, fault)
    return ToolResult(f"{content[:MAX_RESULT_CHARS]}\n[{cut} more characters cut]", fault, cut)
