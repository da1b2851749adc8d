"""The requests of the golden prompts in the shape of each API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
DATE = "2025-06-28"

Request = dict[str, Any]
"""An OpenAI chat request without `model`. The thoughts of an assistant message are in `reasoning`."""


def read_requests() -> dict[str, Request]:
    """The requests of requests.jsonl by their id."""
    with (FOLDER / "requests.jsonl").open(encoding="utf-8") as lines:
        return {item["id"]: item["request"] for item in map(json.loads, lines)}


def with_thoughts_in(request: Request, key: str) -> Request:
    """The request with thoughts in the field that a server documents."""
    messages = [
        {key if name == "reasoning" else name: value for name, value in message.items()}
        for message in request["messages"]
    ]
    return {**request, "messages": messages}


def as_responses(request: Request) -> Request:
    """The same conversation for the Responses API: an item for thoughts, one for text, one for each call."""
    out: Request = {"input": [item for message in request["messages"] for item in _items(message)]}
    if request.get("tools") is not None:
        out["tools"] = [_flat(tool) for tool in request["tools"]]
    if "reasoning_effort" in request:
        out["reasoning"] = {"effort": request["reasoning_effort"]}
    for key in ("tool_choice", "parallel_tool_calls"):
        if key in request:
            value = request[key]
            out[key] = {"type": "function", **value["function"]} if isinstance(value, Mapping) else value
    if "response_format" in request:
        form = request["response_format"]
        out["text"] = {"format": {"type": form["type"], **form.get("json_schema", {})}}
    return out


def _flat(tool: Mapping[str, Any]) -> Request:
    return {"type": "function", "strict": False, **tool["function"]}


def _items(message: Mapping[str, Any]) -> Iterator[Request]:
    role, content = message["role"], message.get("content")
    if role == "tool":
        output = _parts(content, "input_text")
        yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": output}
        return
    if role != "assistant":
        yield {"type": "message", "role": role, "content": _parts(content, "input_text")}
        return
    thoughts = message.get("reasoning") or message.get("reasoning_content") or message.get("thinking")
    if thoughts:
        yield {
            "type": "reasoning",
            "id": "rs",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": thoughts}],
        }
    if content:
        parts = _parts(content if isinstance(content, list) else [{"text": content}], "output_text")
        item = {"type": "message", "id": "msg", "status": "completed", "role": "assistant", "content": parts}
        # As servers that know phases answer, and clients return it; the others ignore it.
        yield {**item, "phase": "commentary" if message.get("tool_calls") else "final_answer"}
    for call in message.get("tool_calls", ()):
        yield {"type": "function_call", "call_id": call["id"], **call["function"]}


def _parts(content: Any, kind: str) -> Any:
    if not isinstance(content, list):
        return content
    extra: Request = {"annotations": []} if kind == "output_text" else {}
    return [{"type": kind, "text": part["text"], **extra} for part in content]
