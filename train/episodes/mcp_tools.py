"""Tools of an MCP server: a child process, over its standard input and output, or one that runs, at its address.

Source: Model Context Protocol, https://modelcontextprotocol.io (package `mcp`, the extra `[tools]`).
"""

from __future__ import annotations

import asyncio
import shlex
import threading
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.completion import ToolCall
from counterpoint.data.harmony.tool_declarations import read_tools
from counterpoint.train.sampling.rollout import ToolResult


class McpTools:
    """The tools of one server; the connection lives in a thread of its own. ConfigError where it cannot start.

    server: the command that starts it, or its address (`http://...`). All rollouts share it: what it keeps for one, the
    next one sees. version: its name and version, as it gives them.
    """

    builtin_tools: tuple[str, ...] = ()

    def __init__(self, server: str, seconds: float = 30.0) -> None:
        try:
            from mcp import Client, StdioServerParameters
        except ImportError:
            raise ConfigError("tools: MCP servers need the package mcp: pip install 'counterpoint[tools]'") from None
        remote = server.startswith(("http://", "https://"))
        words = [] if remote else shlex.split(server)
        if not words and not remote:
            raise ConfigError("tools: the command of an MCP server is empty: write how it is started, or its address")
        self._seconds = seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client: Any = Client(server if remote else StdioServerParameters(command=words[0], args=words[1:]))
        self._stop: asyncio.Event | None = None
        try:
            self._lifetime = self._start()
            listed = self._wait(self._client.list_tools())
        except Exception as error:
            self.close()
            while isinstance(error, BaseExceptionGroup) and isinstance(error.exceptions[0], Exception):
                error = error.exceptions[0]
            told = "did not answer" if remote else "did not start"
            fix = "look whether it runs at this address" if remote else "run it by hand"
            raise ConfigError(
                f"tools: the MCP server `{server}` {told} ({type(error).__name__}: {error}): {fix}"
            ) from None
        about = self._client.server_info
        self.version = f"{about.name} {about.version}"
        declared = [
            {"name": tool.name, "description": tool.description or "", "inputSchema": tool.input_schema}
            for tool in listed.tools
        ]
        self.tools: tuple[Tool, ...] = read_tools(declared, "tools").tools
        self._names = {tool.name for tool in self.tools}

    def call(self, call: ToolCall) -> ToolResult | None:
        if call.name not in self._names:
            return None
        if call.arguments is None:
            return ToolResult("error: the arguments are not a JSON object", "bad_arguments")
        try:
            result = self._wait(self._client.call_tool(call.name, call.arguments))
        except FutureTimeout:
            return ToolResult(f"error: no answer within {self._seconds:g} s", "hung")
        except Exception as error:
            return ToolResult(f"error: {type(error).__name__}: {error}"[:300], "raised")
        text = "\n".join(part.text if part.type == "text" else f"[{part.type}]" for part in result.content)
        return ToolResult(text, "raised" if result.is_error else None)

    def close(self) -> None:
        with suppress(Exception):
            if self._stop is not None:
                self._loop.call_soon_threadsafe(self._stop.set)
                self._lifetime.result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _start(self) -> Any:
        """Enter the client in one task that also leaves it: its cancel scopes belong to the task that made them."""
        ready = threading.Event()
        failure: list[BaseException] = []

        async def live() -> None:
            try:
                async with self._client:
                    self._stop = asyncio.Event()
                    ready.set()
                    await self._stop.wait()
            except BaseException as error:
                failure.append(error)
                ready.set()

        lifetime = asyncio.run_coroutine_threadsafe(live(), self._loop)
        if not ready.wait(self._seconds):
            raise TimeoutError(f"no answer within {self._seconds:g} s")
        if failure:
            raise failure[0]
        return lifetime

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(self._seconds)
        except FutureTimeout:
            future.cancel()
            raise
