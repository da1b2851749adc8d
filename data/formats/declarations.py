"""What a row declares in addition to its messages, as OpenAI's API takes it: tools, legacy functions, the response
format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import ResponseFormat
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_object, as_text, join, wrong_type
from counterpoint.data.harmony.tool_declarations import read_tools

DECLARATIONS = frozenset({"tools", "functions", "parallel_tool_calls", "response_format"})


def read_declarations(draft: Draft, row: Mapping[str, Any], field: str) -> None:
    """Tools, legacy functions, `parallel_tool_calls` and `response_format` of a row or of a row's `input`."""
    for key in ("tools", "functions"):
        if row.get(key) is not None:
            read = read_tools(row[key], join(field, key), draft.options.tool_schemas)
            draft.notices.extend(read.notices)
            draft.declare(read.tools, read.builtin_tools, join(field, key))
    parallel = row.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise wrong_type(parallel, join(field, "parallel_tool_calls"), "true or false")
    draft.parallel_calls_allowed = parallel is not False
    if row.get("response_format") is not None:
        draft.response_formats = read_response_format(draft, row["response_format"], join(field, "response_format"))


def read_response_format(draft: Draft, value: Any, field: str) -> tuple[ResponseFormat, ...]:
    """`{"type":"json_schema","json_schema":{name, schema, description}}`, or the Responses API's flat `text.format`."""
    value = as_object(value, field)
    kind = value.get("type")
    if kind in (None, "text"):
        return ()
    if kind == "json_object":
        draft.notice("response_format", field, "json_object has no schema: not rendered")
        return ()
    if kind != "json_schema":
        raise RowError(
            "response_format", f"{field}.type", "is not text, json_object or json_schema", "write json_schema"
        )
    if isinstance(value.get("json_schema"), dict):
        value, field = value["json_schema"], f"{field}.json_schema"
    schema = as_object(value.get("schema"), f"{field}.schema")
    name = as_text(value.get("name") or "response", f"{field}.name")
    description = as_text(value.get("description") or "", f"{field}.description")
    return (ResponseFormat(name, schema, description),)
