"""Tool declarations of any source as `Tool`s, their schemas as given and searched for what a prompt cannot show.

Read: OpenAI nested (`{"type":"function","function":{...}}`) and flat, Anthropic (`input_schema`), MCP (`inputSchema`,
as a list or `{"tools":[...]}`), and lists that a Parquet column holds as JSON text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import orjson

from counterpoint.configs.data_section import ToolSchemas
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Notice, Tool
from counterpoint.data.harmony.lost_keywords import lost_keywords, multi_line_texts, rewritten_keywords
from counterpoint.data.harmony.tool_schema import clean, writable

_BUILTIN_TYPES = {
    "code_interpreter": "python",
    "python": "python",
    "web_search": "browser",
    "web_search_preview": "browser",
    "browser_search": "browser",
    "browser": "browser",
}
_FIX = 'write {"type": "function", "function": {"name", "description", "parameters"}}'
_SCHEMA_KEYS = ("parameters", "input_schema", "inputSchema")
_READ = frozenset({"name", "description", "type", "strict", *_SCHEMA_KEYS})


@dataclass(frozen=True, slots=True)
class ReadTools:
    """tools: functions, their `parameters` as given. builtin_tools: of `python` and `browser`.
    notices: (`schema_lost`) every keyword that the prompt will not show, and what a rewriting changes."""

    tools: tuple[Tool, ...]
    builtin_tools: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


def read_tools(value: Any, field: str, schemas: ToolSchemas = "as_given") -> ReadTools:
    """Tools of a row. `field` is their path in the row; schemas: how they will be declared. Raises RowError."""
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
        if isinstance(kind, str) and kind in _BUILTIN_TYPES and "function" not in item and "parameters" not in item:
            builtin.append(_BUILTIN_TYPES[kind])
            continue
        tool, found = _read(item, where, schemas)
        tools.append(tool)
        notices.extend(found)
    return ReadTools(tuple(tools), tuple(dict.fromkeys(builtin)), tuple(notices))


def _read(item: Any, field: str, schemas: ToolSchemas) -> tuple[Tool, list[Notice]]:
    try:
        raw = orjson.dumps(item)
    except TypeError:
        raise RowError("wrong_type", field, "is not JSON", _FIX) from None
    tool, notices = _cached(raw, schemas)
    if isinstance(tool, RowError):
        raise RowError(tool.kind, f"{field}{tool.field}", tool.what, tool.fix)
    return tool, [replace(notice, field=f"{field}{notice.field}") for notice in notices]


@lru_cache(maxsize=4096)
def _cached(raw: bytes, schemas: ToolSchemas) -> tuple[Tool | RowError, tuple[Notice, ...]]:
    """A tool, or why it is none, with paths from the tool on: most rows of a file declare the same tools."""
    notices: list[Notice] = []
    try:
        return _tool(orjson.loads(raw), "", schemas, notices), tuple(notices)
    except RowError as error:
        return error, ()
    except RecursionError:
        return RowError("tool_schema", "", "is too deep", "write a smaller JSON schema"), ()


def _tool(item: Any, field: str, schemas: ToolSchemas, notices: list[Notice]) -> Tool:
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", field, "is not an object", _FIX)
    for wrapper in ("function", "custom"):
        if isinstance(item.get(wrapper), Mapping):
            item, field = item[wrapper], f"{field}.{wrapper}"
            break
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise RowError("tool_without_name", f"{field}.name", "missing or not a string", _FIX)
    description = item.get("description")
    if description is not None and not isinstance(description, str):
        raise RowError("wrong_type", f"{field}.description", "is not a string", "write a string")
    for key, value in item.items():
        if key not in _READ and value is not None:
            notices.append(Notice("tool_field", f"{field}.{key}", "not shown in the prompt"))
    return Tool(name, description or "", _parameters(item, field, schemas, notices))


def _parameters(
    item: Mapping[str, Any], field: str, schemas: ToolSchemas, notices: list[Notice]
) -> Mapping[str, Any] | None:
    key = next((k for k in _SCHEMA_KEYS if item.get(k) is not None), None)
    if key is None:
        return None
    where = f"{field}.{key}"
    given = item[key]
    if not isinstance(given, Mapping):
        raise RowError("wrong_type", where, "is not an object", "write a JSON schema")
    declared = given
    if schemas == "cleaned":
        schema, changes = clean(given, where)
        declared = writable(schema)
        notices.extend(changes)
        notices.extend(Notice("schema_rewritten", path, what) for path, what in rewritten_keywords(given, where))
    else:
        notices.extend(
            Notice("schema_line_break", path, "its second line is no comment in the prompt, as on servers")
            for path in multi_line_texts(given, where)
        )
    if declared and declared.get("type") != "object":
        notices.append(Notice("schema_not_object", where, "arguments are an object, the schema's top level is not"))
    notices.extend(
        Notice("schema_lost", path, "openai-harmony does not write it") for path in lost_keywords(declared, where)
    )
    return given
