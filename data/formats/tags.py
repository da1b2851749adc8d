"""Tool results and declarations as tags inside texts: Hermes and Qwen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.call_pairing import AddNotice
from counterpoint.data.rows.strict_json import dumps, loads

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
class Response:
    """One `<tool_response>`."""

    text: str
    name: str | None = None
    id: str | None = None


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


def _response(text: str, field: str, notice: AddNotice) -> Response:
    """A result may be wrapped as `{"name", "content"}`."""
    try:
        value = loads(text.encode())
    except RowError:
        return Response(text)
    if not isinstance(value, dict) or "content" not in value or not {"name", "tool_call_id"} & set(value):
        return Response(text)
    notice("unwrapped_result", field, "the content of a wrapped result was taken")
    content, name, id_ = value["content"], value.get("name"), value.get("tool_call_id")
    inner = content if isinstance(content, str) else dumps(content)
    return Response(inner, name if isinstance(name, str) else None, id_ if isinstance(id_, str) else None)


def _json_values(text: str, field: str) -> list[Any]:
    """A JSON list, or JSON values one after another (Qwen writes one a line)."""
    try:
        value = loads(text.encode())
    except RowError:
        value = []
        for line in filter(str.strip, text.split("\n")):
            try:
                value.append(loads(line.encode()))
            except RowError as error:
                raise RowError("tools_not_json", field, error.what, "write the tools as JSON") from None
    return value if isinstance(value, list) else [value]
