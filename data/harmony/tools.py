"""Tool declarations of any source as `Tool`s.

Read: OpenAI nested (`{"type":"function","function":{...}}`) and flat, Anthropic (`input_schema`), MCP (`inputSchema`,
as a list or `{"tools":[...]}`), and lists that a Parquet column holds as JSON text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Notice, Tool


@dataclass(frozen=True, slots=True)
class ReadTools:
    """tools: functions; builtin_tools: of `python` and `browser`; notices: what was changed or lost."""

    tools: tuple[Tool, ...]
    builtin_tools: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


_BUILTIN_TYPES = {
    "code_interpreter": "python",
    "python": "python",
    "web_search": "browser",
    "web_search_preview": "browser",
    "browser_search": "browser",
    "browser": "browser",
}
_FIX = 'write {"type": "function", "function": {"name", "description", "parameters"}}'


def read_tools(value: Any, field: str) -> ReadTools:
    """Tools of a row. `field` is their path in the row. Raises RowError."""
    notices: list[Notice] = []
    if isinstance(value, str):
        try:
            value = orjson.loads(value) if value.strip() else []
        except orjson.JSONDecodeError as error:
            raise RowError("tools_not_json", field, f"not JSON ({error})", "write a list of tools") from None
        notices.append(Notice("json_in_string", field, "tools given as text were read as JSON"))
    if isinstance(value, Mapping) and isinstance(value.get("tools"), list):
        value, field = value["tools"], f"{field}.tools"
    if not isinstance(value, list):
        raise RowError("wrong_type", field, "is not a list of tools", _FIX)
    tools: list[Tool] = []
    builtin: list[str] = []
    for i, item in enumerate(value):
        where = f"{field}[{i}]"
        kind = item.get("type") if isinstance(item, Mapping) else None
        if isinstance(kind, str) and kind in _BUILTIN_TYPES and "function" not in item:
            builtin.append(_BUILTIN_TYPES[kind])
            continue
        tools.append(_tool(item, where, notices))
    return ReadTools(tuple(tools), tuple(dict.fromkeys(builtin)), tuple(notices))


def _tool(item: Any, field: str, notices: list[Notice]) -> Tool:
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", field, "is not an object", _FIX)
    nested = item.get("function")
    if isinstance(nested, Mapping):
        item, field = nested, f"{field}.function"
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise RowError("tool_without_name", f"{field}.name", "missing or not a string", _FIX)
    description = item.get("description")
    if description is not None and not isinstance(description, str):
        raise RowError("wrong_type", f"{field}.description", "is not a string", "write a string")
    parameters = None
    for key in ("parameters", "input_schema", "inputSchema"):
        if item.get(key) is not None:
            parameters = item[key]
            if not isinstance(parameters, Mapping):
                raise RowError("wrong_type", f"{field}.{key}", "is not an object", "write a JSON schema")
            break
    return Tool(name, description or "", parameters)
