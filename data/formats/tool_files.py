"""Tools that a run file or a command names: built-in ones, and JSON files with declarations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from counterpoint.configs.data_section import ToolSchemas
from counterpoint.configs.errors import ConfigError, DataError, RowError
from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.tool_declarations import ReadTools, read_tools
from counterpoint.data.rows.containers import EXAMPLE, find
from counterpoint.data.rows.strict_json import loads

BUILTIN_TOOLS = ("python", "browser")
_FIX = "give a JSON file with a list of tools, or a folder of such files"


def declarations(path: str) -> list[Any]:
    """The tools of a JSON file as written there: a list, `{"tools": [...]}` as MCP servers answer, or one tool; or
    those of all .json files of a folder, by name; `example:NAME.json` is a shipped one. Raises DataError.
    """
    place = find(path) if path.startswith(EXAMPLE) else Path(path)
    found: list[Any] = []
    try:
        files = sorted(place.glob("*.json")) if place.is_dir() else [place]
        for file in files:
            value = loads(file.read_bytes(), str(file))
            value = value.get("tools", value) if isinstance(value, dict) else value
            found += value if isinstance(value, list) else [value]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): {_FIX}") from None
    except RowError as error:
        raise DataError(str(error)) from None
    if not files:
        raise DataError(f"{path}: holds no .json file: {_FIX}")
    return found


@lru_cache(maxsize=16)
def tools_of_file(path: str, schemas: ToolSchemas = "as_given") -> ReadTools:
    """The tools that a JSON file or a folder of them declares. Raises DataError."""
    try:
        return read_tools(declarations(path), "tools", schemas)
    except RowError as error:
        raise DataError(f"{path}: {error}") from None


def read_tool_names(names: Iterable[str]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """Function tools and built-in tools of the names `python`, `browser`, and of JSON files.

    ConfigError for a file that does not exist, DataError for what cannot be read or is no tool.
    """
    functions: list[Tool] = []
    builtins: list[str] = []
    for name in names:
        if name in BUILTIN_TOOLS:
            builtins.append(name)
            continue
        if not Path(name).exists():
            raise ConfigError(f"tools: {name}: there is no such file: give {', '.join(BUILTIN_TOOLS)}, or {_FIX[5:]}")
        read = tools_of_file(name)
        functions += read.tools
        builtins += read.builtin_tools
    return tuple(functions), tuple(dict.fromkeys(builtins))
