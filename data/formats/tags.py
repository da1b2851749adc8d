"""Thinking and calls as tags inside text: Hermes, Qwen, and DeepSeek's `<think>`."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.call_pairing import AddNotice
from counterpoint.data.formats.draft import Call

_OPEN, _CLOSE = "<think>", "</think>"
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
# What Hermes and Qwen write around the tools: it asks for XML tags, which gpt-oss does not write.
_TOOL_PROMPT = re.compile(
    r"(?:# Tools\s+)?(?:You may call one or more functions to assist with the user query\.\s*)?"
    r"You are provided with function signatures within <tools>\s*</tools> XML tags[.:]?[ \t]*\n?"
)
_CALL_PROMPT = re.compile(
    r"For each function call,? return a json object with function name and arguments within <tool_call>\s*</tool_call>"
    r".*?<tool_call>.*?</tool_call>",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Tagged:
    """An assistant's text, taken apart. calls: in order; their ids are None."""

    thinking: str | None
    text: str
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Response:
    """One `<tool_response>`."""

    text: str
    name: str | None = None
    id: str | None = None


def has_tags(text: str) -> bool:
    """Whether an assistant's text holds thinking or calls as tags."""
    return text.lstrip().startswith(_OPEN) or "<tool_call>" in text or _CLOSE in text


def split_thinking(text: str, field: str, notice: AddNotice) -> tuple[str | None, str]:
    """(thinking, the rest) of a text that may begin with `<think>...</think>`. Raises RowError where that is open."""
    begun = text.lstrip().startswith(_OPEN)
    if begun and _CLOSE not in text:
        raise RowError("unclosed_tag", field, "<think> is not closed", "write </think> before the answer")
    if not begun and (_CLOSE not in text or _OPEN in text):
        return None, text
    thinking, _, rest = text.partition(_CLOSE)
    if begun:
        thinking = thinking.lstrip().removeprefix(_OPEN)
    else:
        notice("open_think", field, "</think> without <think>: the text before it was taken as thinking")
    if not thinking.strip():
        notice("empty_thinking", field, "empty thinking was left out")
        return None, rest.strip("\n")
    return thinking.strip("\n"), rest.lstrip("\n")


def split_assistant(text: str, field: str, notice: AddNotice) -> Tagged:
    """Thinking, text and calls of an assistant's text. Raises RowError."""
    thinking, rest = split_thinking(text, field, notice)
    calls: list[Call] = []
    for i, found in enumerate(_CALL.finditer(rest)):
        calls.append(_call(found.group(1).strip(), f"{field}<tool_call>[{i}]", notice))
    rest = _CALL.sub("", rest)
    if "<tool_call>" in rest:
        if not calls or _starts_call(rest):
            raise RowError("unclosed_tag", field, "<tool_call> is not closed", "write </tool_call> after the call")
        notice("stray_tag", field, "a <tool_call> that is no call was kept as text")
    return Tagged(thinking, rest.strip() if calls else rest, tuple(calls))


def split_responses(text: str, field: str, notice: AddNotice) -> list[Response] | None:
    """The tool results that a text holds; None where it holds none. Raises RowError where there is text between
    them."""
    found = list(_RESPONSE.finditer(text))
    if not found:
        if "<tool_response>" in text:
            raise RowError("unclosed_tag", field, "<tool_response> is not closed", "write </tool_response>")
        return None
    if _RESPONSE.sub("", text).strip():
        raise RowError("text_beside_result", field, "text next to <tool_response>", "write it as a message of its own")
    return [_response(match.group(1).strip("\n"), field, notice) for match in found]


def split_tools(text: str, field: str, notice: AddNotice) -> tuple[str, list[Any]]:
    """(the text without tool declarations, the declared tools). Raises RowError where they are no JSON."""
    tools: list[Any] = []
    kept, at = [], 0
    for found in _TOOLS.finditer(text):
        if not found.group(1).strip():
            continue
        tools.extend(_json_values(found.group(1), f"{field}<tools>"))
        kept.append(text[at : found.start()])
        at = found.end()
    if not tools:
        return text, []
    rest = "".join((*kept, text[at:]))
    without = _CALL_PROMPT.sub("", _TOOL_PROMPT.sub("", rest)).strip()
    notice("tools_in_system", field, f"{len(tools)} tools were taken out of the system text")
    if len(without) < len(rest.strip()):
        notice("tool_prompt", field, "sentences that ask for calls in XML tags were left out")
    return without, tools


def _starts_call(text: str) -> bool:
    return text.partition("<tool_call>")[2].lstrip()[:1] in ("{", "[")


def _call(text: str, field: str, notice: AddNotice) -> Call:
    value = _object(text, field, notice)
    name = value.get("name")
    if not isinstance(name, str):
        raise RowError("bad_call", f"{field}.name", "missing or not a string", 'write {"name", "arguments"}')
    id_ = value.get("id")
    arguments = value.get("arguments", value.get("parameters"))
    return Call(name, arguments, field, id_ if isinstance(id_, str) else None, native=True)


def _response(text: str, field: str, notice: AddNotice) -> Response:
    """A result may be wrapped as `{"name", "content"}`."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return Response(text)
    if not isinstance(value, dict) or "content" not in value or not {"name", "tool_call_id"} & set(value):
        return Response(text)
    notice("unwrapped_result", field, "the content of a wrapped result was taken")
    content, name, id_ = value["content"], value.get("name"), value.get("tool_call_id")
    inner = content if isinstance(content, str) else orjson.dumps(content).decode()
    return Response(inner, name if isinstance(name, str) else None, id_ if isinstance(id_, str) else None)


def _object(text: str, field: str, notice: AddNotice) -> Mapping[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        value = _python_literal(text)
        if value is None:
            raise RowError("call_not_json", field, f"not JSON ({error})", 'write {"name", "arguments"}') from None
        notice("python_literal", field, "a call written as a Python literal was read")
    if not isinstance(value, dict):
        raise RowError("bad_call", field, "is not an object", 'write {"name", "arguments"}')
    return value


def _python_literal(text: str) -> dict[str, Any] | None:
    try:
        value = ast.literal_eval(text)
        orjson.dumps(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _json_values(text: str, field: str) -> list[Any]:
    """A JSON list, or JSON values one after another (Qwen writes one a line)."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = []
        for line in filter(str.strip, text.split("\n")):
            try:
                value.append(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                raise RowError("tools_not_json", field, f"not JSON ({error})", "write the tools as JSON") from None
    return value if isinstance(value, list) else [value]
