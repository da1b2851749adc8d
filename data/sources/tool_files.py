"""Tools that a run file or a command names: built-in ones, and JSON files with OpenAI's list of tools."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from counterpoint.configs.errors import ConfigError
from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.tools import read_tools
from counterpoint.data.sources.strict_json import loads

BUILTIN_TOOLS = ("python", "browser")


def read_tool_names(names: Iterable[str]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """Function tools and built-in tools of the names `python`, `browser`, and of JSON files.

    A file holds a list of tools, or one. ConfigError for a file that cannot be read, RowError for what is no tool.
    """
    functions: list[Tool] = []
    builtins: list[str] = []
    for name in names:
        if name in BUILTIN_TOOLS:
            builtins.append(name)
            continue
        try:
            value = loads(Path(name).read_bytes(), name)
        except OSError as error:
            fix = f"give {', '.join(BUILTIN_TOOLS)}, or a JSON file with a list of tools"
            raise ConfigError(f"tools: {name}: cannot be read ({error.strerror}): {fix}") from None
        read = read_tools(value if isinstance(value, list) else [value], name)
        functions += read.tools
        builtins += read.builtin_tools
    return tuple(functions), tuple(dict.fromkeys(builtins))
