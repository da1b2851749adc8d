"""Tool names: what a call's recipient is, which names the header of a message cannot hold, and renaming."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Message, Tool
from counterpoint.data.formats.tool_files import BUILTIN_TOOLS, tools_of_file

_LEGAL = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ILLEGAL_CHARACTER = re.compile(r"[^A-Za-z0-9_-]")


class ToolNames:
    """The tool names of one conversation."""

    def __init__(
        self, options: ConversionSettings, notice: Callable[[str, str, str], None], builtin: Sequence[str]
    ) -> None:
        self.options = options
        self.notice = notice
        self.builtin = tuple(name for name in builtin if name in BUILTIN_TOOLS)
        self._functions: dict[str, Tool] = {}
        self._told: set[str] = set()
        self._checked: set[str] = set()
        self._asked = False
        self._renamed: dict[str, str] = {}

    def offer(self, names: Sequence[str]) -> None:
        """Built-in tools that the row offers."""
        for name in names:
            if name in BUILTIN_TOOLS:
                self.builtin = tuple(dict.fromkeys((*self.builtin, name)))
            else:
                self.notice("unknown_builtin_tool", "builtin_tools", f"{name[:60]!r} is not python or browser")

    def declare(self, tools: Sequence[Tool], field: str) -> None:
        """Function tools of the row. Raises RowError where two of one name differ."""
        for i, tool in enumerate(tools):
            where = f"{field}[{i}]"
            self._check(tool.name, where)
            known = self._functions.setdefault(tool.name, tool)
            if known is not tool and known != tool:
                what = f"a second, different tool {tool.name[:60]!r}"
                raise RowError("duplicate_tool", where, what, "keep one of them")
            if known is not tool:
                self.notice("duplicate_tool", where, "declared twice: once was kept")

    def _declare_default(self) -> None:
        """The tools of the file that the options name, for a row that declares none."""
        if self.options.tools is None or self._functions or self._asked:
            return
        self._asked = True
        read = tools_of_file(self.options.tools, self.options.tool_schemas)
        self.declare(read.tools, "data.tools")
        self.offer(read.builtin_tools)

    def declared(self) -> tuple[Tool, ...]:
        """The function tools as they are rendered."""
        self._declare_default()
        if not self._renamed:
            return tuple(self._functions.values())
        return tuple(replace(tool, name=self.used(tool.name)) for tool in self._functions.values())

    def parameters(self, name: str) -> Mapping[str, Any]:
        """The schema of a declared function's arguments; empty where there is none."""
        self._declare_default()
        tool = self._functions.get(name) or self._functions.get(name.removeprefix("functions."))
        return (tool.parameters if tool else None) or {}

    def recipient(self, name: str, field: str) -> str:
        """`functions.NAME`, or the built-in tool where the row offers it and declares no function of that name."""
        self._declare_default()
        if name.startswith("functions.") and name not in self._functions:
            name = name.removeprefix("functions.")
        if name not in self._functions and name.split(".")[0] in self.builtin:
            return "python" if name.split(".")[0] == "python" else name
        self._check(name, field)
        if name not in self._functions and name not in self._told:
            self._told.add(name)
            what = "calls a tool that the row does not declare" if self._functions else "the row declares no tools"
            self.notice("undeclared_tool", field, what)
        return f"functions.{self.used(name)}"

    def used(self, name: str) -> str:
        """The name as it is rendered."""
        if self.options.tool_names == "keep" or _LEGAL.fullmatch(name):
            return name
        if name not in self._renamed:
            taken = set(self._functions) | set(self._renamed.values())
            new = base = _ILLEGAL_CHARACTER.sub("_", name)[:60] or "tool"
            number = 2
            while new in taken:
                new, number = f"{base}_{number}", number + 1
            self._renamed[name] = new
        return self._renamed[name]

    def builtin_tools(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """The built-in tools that the system message declares."""
        used = {(m.recipient or "").split(".")[0] for m in messages if m.is_call}
        return tuple(name for name in BUILTIN_TOOLS if name in self.builtin or name in used)

    def _check(self, name: str, field: str) -> None:
        if _LEGAL.fullmatch(name) or name in self._checked:
            return
        self._checked.add(name)
        if self.options.tool_names == "rename":
            self.notice("tool_name", field, f"{name[:60]!r} was renamed {self.used(name)!r}")
        elif not name or any(c.isspace() for c in name) or "<|" in name:
            what = f"the tool name {name[:60]!r} is not allowed in a message header"
            raise RowError("tool_name", field, what, "use letters, digits, _ and -, or set data.tool_names: rename")
        else:
            self.notice("tool_name", field, f"{name[:60]!r} holds characters outside [A-Za-z0-9_-]")
