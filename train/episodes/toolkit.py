"""The tools of a run: what all episodes share, and what each gets of its own."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.tool_section import BrowserSettings, ToolSettings
from counterpoint.data.conversation import Conversation, Tool
from counterpoint.data.harmony.completion import ToolCall
from counterpoint.train.episodes.browser import Browser
from counterpoint.train.episodes.corpus import Corpus
from counterpoint.train.episodes.mcp_tools import McpTools
from counterpoint.train.episodes.sandbox import SandboxLimits, unbounded
from counterpoint.train.episodes.tools import BuiltinPython, FunctionTools, Provider, Toolbox
from counterpoint.train.sampling.rollout import ToolResult


class Toolkit:
    """Makes the toolbox of each episode. Close it, or use it as a context manager.

    Functions are loaded, MCP servers started and the browser's pages indexed once. What functions keep, the session of
    the built-in `python` and the pages seen are an episode's own: no rollout sees the state of another.
    notes: what a user should know of the tools on this machine. ConfigError for an unavailable tool (no such function,
    no server, no sandbox).
    """

    def __init__(
        self,
        functions: Sequence[str] = (),
        mcp: Sequence[str] = (),
        python: bool = False,
        seconds: float = 10.0,
        browser: BrowserSettings | None = None,
    ) -> None:
        self._limits = SandboxLimits(seconds=seconds) if python else None
        self._shared: list[Provider] = []
        self._functions: FunctionTools | None = None
        self._browser: Callable[[], Browser] | None = None
        self._pages: str | None = None
        notes: list[str] = []
        try:
            if browser is not None:
                corpus = Corpus(browser.corpus)
                self._browser = partial(Browser, corpus, browser.view_tokens)
                notes += corpus.notes
                self._pages = corpus.digest
            if functions:
                self._functions = FunctionTools(functions, seconds)
            self._shared += [McpTools(command, seconds) for command in mcp]
            self._servers = tuple(each.version for each in self._shared if isinstance(each, McpTools))
            with self.toolbox() as one:
                self.tools: tuple[Tool, ...] = one.tools
                self.builtin_tools: tuple[str, ...] = one.builtin_tools
            missing = unbounded(self._limits) if self._limits is not None else ()
        except ConfigError:
            self.close()
            raise
        told = "tools.python: on this machine the sandbox does not refuse {}: its bounds hold for one process alone"
        self.notes: tuple[str, ...] = (*([told.format(", ".join(missing))] if missing else []), *notes)

    @classmethod
    def of(cls, settings: ToolSettings) -> Self:
        """The tools of a run file."""
        return cls(settings.functions, settings.mcp, settings.python, settings.seconds, settings.browser)

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on besides settings and files of functions: declarations, versions, pages."""
        tools = [{"name": tool.name, "description": tool.description, "schema": tool.parameters} for tool in self.tools]
        versions = {"servers": list(self._servers), "python": platform.python_version()}
        return {"declared": tools, "pages": self._pages, **versions}

    @property
    def empty(self) -> bool:
        return not self.tools and not self.builtin_tools

    def toolbox(self) -> Toolbox:
        """The tools of one episode; closing it ends what belongs to it alone."""
        functions = [] if self._functions is None else [self._functions.session()]
        python = [] if self._limits is None else [BuiltinPython(self._limits)]
        browser = [] if self._browser is None else [self._browser()]
        return Toolbox([*functions, *map(_Shared, self._shared), *python, *browser])

    def declared(self, conversation: Conversation) -> Conversation:
        """The conversation with these tools declared, where it declares none of the same name."""
        known = {tool.name for tool in conversation.tools}
        tools = (*conversation.tools, *(tool for tool in self.tools if tool.name not in known))
        builtin = tuple(dict.fromkeys((*conversation.builtin_tools, *self.builtin_tools)))
        return replace(conversation, tools=tools, builtin_tools=builtin)

    def close(self) -> None:
        if self._functions is not None:
            self._functions.close()
        for provider in self._shared:
            provider.close()

    def __enter__(self) -> Toolkit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Shared:
    """A provider that outlives the toolbox it is in."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.tools = provider.tools
        self.builtin_tools = provider.builtin_tools

    def call(self, call: ToolCall) -> ToolResult | None:
        return self._provider.call(call)

    def close(self) -> None: ...
