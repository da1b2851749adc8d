"""Tool declarations of any source as `Tool`s, their schemas as given and searched for what a prompt cannot show.

Read: OpenAI nested (`{"type":"function","function":{...}}`) and flat, Anthropic (`input_schema`), MCP (`inputSchema`,
as a list or `{"tools":[...]}`), objects by name, and lists or tools that a Parquet column holds as JSON text. Arguments
listed by their names without a schema around them, as xLAM has them, become one.
"""

from __future__ import annotations

import json
import re
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
_BIG = re.compile(rb"\d{17}")
_PLAIN_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
    "set": "array",
    "tuple": "array",
}
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
        value = _json(value, field) if value.strip() else []
        notices.append(Notice("json_in_string", field, "tools given as text were read as JSON"))
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = [_json(item, f"{field}[{i}]") for i, item in enumerate(value)]
        notices.append(Notice("json_in_string", field, "tools given as texts were read as JSON"))
    if isinstance(value, Mapping) and isinstance(value.get("tools"), list):
        value, field = value["tools"], f"{field}.tools"
    elif isinstance(value, Mapping) and (named := _by_name(value)):
        value = named
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


def _json(text: str, field: str) -> Any:
    try:
        return _loaded(text.encode())
    except ValueError as error:
        raise RowError("tools_not_json", field, f"not JSON ({error})", "write a list of tools") from None


def _by_name(value: Mapping[str, Any]) -> list[Any]:
    """`{"f": {"description", "parameters"}}` or one tool as a list; empty where it is neither."""
    if "function" in value or isinstance(value.get("name"), str):
        return [value]
    if value and all(isinstance(item, Mapping) and _is_tool(item) for item in value.values()):
        return [{"name": name, **item} for name, item in value.items()]
    return []


def _is_tool(item: Mapping[str, Any]) -> bool:
    return "description" in item or any(isinstance(item.get(key), Mapping) for key in _SCHEMA_KEYS)


def _read(item: Any, field: str, schemas: ToolSchemas) -> tuple[Tool, list[Notice]]:
    try:
        raw = orjson.dumps(item)
    except TypeError:
        raw = _exact(item, field)
    tool, notices = _cached(raw, schemas)
    if isinstance(tool, RowError):
        raise RowError(tool.kind, f"{field}{tool.field}", tool.what, tool.fix)
    return tool, [replace(notice, field=f"{field}{notice.field}") for notice in notices]


def _exact(item: Any, field: str) -> bytes:
    """A tool whose numbers orjson cannot write."""
    try:
        return json.dumps(item, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        raise RowError("wrong_type", field, "is not JSON", _FIX) from None


@lru_cache(maxsize=4096)
def _cached(raw: bytes, schemas: ToolSchemas) -> tuple[Tool | RowError, tuple[Notice, ...]]:
    """A tool, or why it is none, with paths from the tool on: most rows of a file declare the same tools."""
    notices: list[Notice] = []
    try:
        return _tool(_loaded(raw), "", schemas, notices), tuple(notices)
    except RowError as error:
        return error, ()
    except RecursionError:
        return RowError("tool_schema", "", "is too deep", "write a smaller JSON schema"), ()


def _loaded(raw: bytes) -> Any:
    """orjson rounds integers of more than 64 bits."""
    return json.loads(raw) if _BIG.search(raw) else orjson.loads(raw)


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
    if _lists_arguments(given):
        given = _schema_of(given)
        notices.append(Notice("schema_rewritten", where, "arguments without a schema around them: one was written"))
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


def _lists_arguments(parameters: Mapping[str, Any]) -> bool:
    """Whether what stands for a schema are the arguments by name: `{"city": {"type": "str", "description": "..."}}`."""
    if not parameters or not all(isinstance(value, Mapping) for value in parameters.values()):
        return False
    if {"properties", "$defs", "definitions"} & set(parameters) == set(parameters):
        return False
    return all(isinstance(value.get("type"), str) or "description" in value for value in parameters.values())


def _schema_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema of arguments by name. One is required where it says so, or says neither `optional` nor a
    default."""
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, given in arguments.items():
        own = {key: value for key, value in given.items() if not (key == "required" and isinstance(value, bool))}
        optional = given.get("default") not in (None, "") or given.get("required") is False
        if isinstance(own.get("type"), str):
            kind, _, rest = own["type"].partition(",")
            optional = optional or "optional" in rest.lower()
            base = kind.strip().partition("[")[0].lower()
            own["type"] = _PLAIN_TYPES.get(base, kind.strip() if base == kind.strip() else base)
        properties[name] = own
        if not optional:
            required.append(name)
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}
