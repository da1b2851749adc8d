"""Tool calls in every form that a row has: fields of a message, JSON text, tags in a text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.call_pairing import AddNotice
from counterpoint.data.formats.draft import Call, Draft
from counterpoint.data.formats.fields import as_list, as_object, as_text, describe, text_of
from counterpoint.data.rows.strict_json import NO_JSON, loads

ARGUMENTS = ("arguments", "parameters", "args", "input")
_ID = ("id", "tool_call_id", "toolCallId", "call_id")
_NAME = ("name", "tool_name", "toolName")
_CALL = frozenset({"type", "index", "function", "custom", *ARGUMENTS, *_ID, *_NAME})
_FIX = 'write {"name": "...", "arguments": {...}} or a list of them'
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>)?\s*\Z", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_SCAN = json.JSONDecoder()


def calls_of(draft: Draft, message: Mapping[str, Any], field: str) -> list[Call]:
    """The calls in the fields of a message: `function_call` and `tool_calls`. Raises RowError."""
    calls: list[Call] = []
    legacy = message.get("function_call")
    if legacy is not None:
        where = f"{field}.function_call"
        legacy = _unpacked(legacy, where, draft.notice) if isinstance(legacy, str) else legacy
        calls.append(_function_call(as_object(legacy, where), where, None))
    listed = message.get("tool_calls")
    if listed is None:
        return calls
    where = f"{field}.tool_calls"
    if isinstance(listed, str):
        listed = _unpacked(listed, where, draft.notice)
    for i, item in enumerate([listed] if isinstance(listed, dict) else as_list(listed or [], where)):
        place = f"{where}[{i}]"
        item = as_object(_unpacked(item, place, draft.notice) if isinstance(item, str) else item, place)
        for key, value in item.items():
            if key not in _CALL and value is not None:
                draft.unused(f"tool_calls[].{key}", f"{place}.{key}", value)
        calls.append(read_call(item, place))
    return calls


def _unpacked(text: str, field: str, notice: AddNotice) -> Any:
    if not text.strip():
        return []
    value = json_of(text, field, "write the calls as JSON")
    notice("json_in_string", field, "calls given as text were read as JSON")
    return value


def read_call(item: Mapping[str, Any], field: str) -> Call:
    """One entry of `tool_calls`: OpenAI's nested one, a custom tool's, or a flat `{name, arguments}`."""
    id_ = id_of(item, field)
    if item.get("custom") is not None:
        custom = as_object(item["custom"], f"{field}.custom")
        name = as_text(custom.get("name"), f"{field}.custom.name")
        text = as_text(custom.get("input"), f"{field}.custom.input")
        return Call(name, text, field, id_, f"{field}.custom.input", custom=True)
    function = item.get("function")
    if function is not None and not isinstance(function, str):
        return _function_call(as_object(function, f"{field}.function"), f"{field}.function", id_)
    if any(item.get(key) is not None for key in _NAME):
        return _function_call(item, field, id_)
    if function is not None:
        return _function_call({**item, "name": function}, field, id_)
    raise RowError("bad_call", f"{field}.function", "missing", 'write {"name": "...", "arguments": "{...}"}')


def _function_call(function: Mapping[str, Any], field: str, id_: str | None) -> Call:
    key = next((key for key in _NAME if function.get(key) is not None), "name")
    name = as_text(function.get(key), f"{field}.{key}")
    return call_of(function, name, field, id_, native=False)


def call_of(holder: Mapping[str, Any], name: str, field: str, id_: str | None, native: bool) -> Call:
    """A call whose arguments stand in `holder`, whichever key holds them."""
    key = next((key for key in ARGUMENTS if holder.get(key) is not None), "arguments")
    return Call(name, holder.get(key), field, id_, f"{field}.{key}", native=native)


def id_of(holder: Mapping[str, Any], field: str) -> str | None:
    key = next((key for key in _ID if holder.get(key) is not None), "id")
    return text_of(holder, key, field)


def json_of(text: str, field: str, fix: str = _FIX, kind: str = "call_not_json") -> Any:
    """The value of a JSON text inside a row, numbers as they are written. Raises RowError of that kind."""
    try:
        return loads(text.encode())
    except RowError as error:
        if error.kind not in NO_JSON:
            raise RowError(error.kind, field, error.what, error.fix) from None
        raise RowError(kind, field, error.what, fix) from None


def calls_of_text(text: str, field: str) -> list[Call]:
    """`{"name", "arguments"}` or a list of them, as text. Raises RowError."""
    value = json_of(text, field)
    listed = isinstance(value, list)
    calls = [_listed(item, f"{field}[{i}]" if listed else field) for i, item in enumerate(value if listed else [value])]
    if not calls:
        raise RowError("bad_call", field, "is an empty list", _FIX)
    return calls


def calls_of_value(value: Any, field: str) -> list[Call]:
    """`calls_of_text` whose JSON is read already."""
    if isinstance(value, str):
        return calls_of_text(value, field)
    listed = isinstance(value, list)
    return [_listed(item, f"{field}[{i}]" if listed else field) for i, item in enumerate(value if listed else [value])]


def _listed(item: Any, where: str) -> Call:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        inner = item["function"]
        if isinstance(inner.get("name"), str):
            return call_of(inner, inner["name"], where, id_of(item, where), native=True)
    name = (
        next((item[key] for key in _NAME if isinstance(item.get(key), str)), None) if isinstance(item, dict) else None
    )
    if name is None:
        raise RowError("bad_call", where, "is not an object with a name", _FIX)
    id_ = item.get("id")
    return call_of(item, name, where, id_ if isinstance(id_, str) else None, native=True)


def has_tagged_calls(text: str) -> bool:
    """Whether a text holds a `<tool_call>` outside of code."""
    return _OPEN in text and any(not _quoted(text, found.start()) for found in re.finditer(_OPEN, text))


def split_calls(text: str, field: str, draft: Draft) -> tuple[str, list[Call]]:
    """(the text without its `<tool_call>`s, the calls). Raises RowError."""
    calls: list[Call] = []
    kept: list[str] = []
    at = 0
    while (start := text.find(_OPEN, at)) >= 0:
        inner = start + len(_OPEN)
        end, stop = _end_of_call(text, inner)
        if _quoted(text, start) or end < 0:
            if end < 0 and not _quoted(text, start) and (not calls or text[inner:].lstrip()[:1] in ("{", "[")):
                raise RowError("unclosed_tag", field, "<tool_call> is not closed", "write </tool_call> after the call")
            draft.notice("stray_tag", field, "a <tool_call> that is no call was kept as text")
            kept.append(text[at:inner])
            at = inner
            continue
        kept.append(text[at:start])
        calls.append(_tagged(text[inner:end].strip(), f"{field}<tool_call>[{len(calls)}]", draft))
        at = stop
    kept.append(text[at:])
    rest = "".join(kept)
    return (rest.strip() if calls else rest), calls


def _end_of_call(text: str, start: int) -> tuple[int, int]:
    """(where a call's text ends, where the text goes on); a JSON value may itself hold the closing tag."""
    value = start + len(text[start:]) - len(text[start:].lstrip())
    if text[value : value + 1] == "{":
        try:
            _, end = _SCAN.raw_decode(text, value)
        except (json.JSONDecodeError, RecursionError):
            pass
        else:
            close = end + len(text[end:]) - len(text[end:].lstrip())
            if text.startswith(_CLOSE, close):
                return end, close + len(_CLOSE)
    close = text.find(_CLOSE, start)
    return close, close + len(_CLOSE)


def _quoted(text: str, at: int) -> bool:
    """Whether a place is inside a block of code, as examples of the notation are."""
    return "```" in text and text.count("```", 0, at) % 2 == 1


def _tagged(text: str, field: str, draft: Draft) -> Call:
    if found := _FUNCTION.match(text):
        return _xml_call(found.group(1).strip(), found.group(2), field, draft)
    value = _object(text, field, draft.notice)
    name = value.get("name")
    if not isinstance(name, str):
        raise RowError("bad_call", f"{field}.name", "missing or not a string", 'write {"name", "arguments"}')
    id_ = value.get("id")
    return Call(
        name, value.get("arguments", value.get("parameters")), field, id_ if isinstance(id_, str) else None, native=True
    )


def _xml_call(name: str, body: str, field: str, draft: Draft) -> Call:
    """Qwen3-Coder's form: texts, of which those that are declared as no string are JSON."""
    declared = draft.names.parameters(name).get("properties")
    properties = declared if isinstance(declared, dict) else {}
    arguments: dict[str, Any] = {}
    for found in _PARAMETER.finditer(body):
        key, value = found.group(1).strip(), found.group(2)
        schema = properties.get(key)
        kind = schema.get("type") if isinstance(schema, dict) else None
        arguments[key] = value if kind == "string" else _as_json(value)
    draft.notice("xml_call", field, "a call with <parameter> tags was written as JSON")
    return Call(name, arguments, field, native=True)


def _as_json(text: str) -> Any:
    try:
        return loads(text.encode("utf-8", "surrogatepass"))
    except RowError:
        return text


def _object(text: str, field: str, notice: AddNotice) -> Mapping[str, Any]:
    try:
        value = json_of(text, field, 'write {"name", "arguments"}')
    except RowError as error:
        value = _python_literal(text)
        if value is None:
            raise error from None
        notice("python_literal", field, "a call written as a Python literal was read")
    if not isinstance(value, dict):
        raise RowError("bad_call", field, f"is {describe(value)}, not an object", 'write {"name", "arguments"}')
    return value


def _python_literal(text: str) -> dict[str, Any] | None:
    try:
        value = ast.literal_eval(text)
        orjson.dumps(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
