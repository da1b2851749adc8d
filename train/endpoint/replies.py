"""A completion as clients of OpenAI's API read it: chat completions and responses, whole or streamed as one chunk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from counterpoint.data.harmony.codes import Code
from counterpoint.data.harmony.completion import Completion
from counterpoint.train.endpoint.requests import Message, called
from counterpoint.train.scoring.scorers import answer_of

Finish = Literal["stop", "tool_calls", "length"]
Flaw = Literal["length", "malformed", "calls"]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client reads. content: the final that counts, or what was said before a call. flaw: why it is empty:
    tokens ran out, it is neither a final nor a call, or it is one call more than allowed."""

    id: str
    content: str = ""
    reasoning: str | None = None
    call: Mapping[str, Any] | None = None
    finish: Finish = "stop"
    flaw: Flaw | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def message(self) -> Message:
        """As it comes back in a later request."""
        return {
            "role": "assistant",
            "content": self.content,
            **({"reasoning_content": self.reasoning} if self.reasoning else {}),
            **({"tool_calls": [self.call]} if self.call is not None else {}),
        }


def reply_of(completion: Completion, id: str, prompt_tokens: int, stops: Sequence[str], may_call: bool) -> Reply:
    """stops: texts before which the content ends. may_call: whether one more call is allowed."""
    tokens = completion.n_tokens_by_channel["analysis"]
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(completion.ids),
        "reasoning_tokens": tokens,
    }
    final = answer_of(completion)
    call = completion.calls[-1] if completion.stop == "call" and completion.calls else None
    if completion.stop == "return" and final is not None:
        ends = [at for text in stops if (at := final.find(text)) >= 0]
        return Reply(id, final[: min(ends)] if ends else final, completion.analysis, **counts)
    named = call is not None and Code.CALL_WITHOUT_RECIPIENT.value not in completion.codes
    if call is not None and named and call.namespace in ("functions", None) and may_call:
        made = called(f"call_{id}", call.name, call.arguments_text)
        return Reply(id, "\n".join(completion.preambles), completion.analysis, made, "tool_calls", **counts)
    cut: Flaw = "length" if completion.stop == "length" else "calls" if named and not may_call else "malformed"
    return Reply(id, "", completion.analysis, None, "length", cut, **counts)


def chat_completion(reply: Reply, model: str) -> dict[str, Any]:
    message = {**reply.message, "content": reply.content or (None if reply.call is not None else "")}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish, "logprobs": None}
    return {**_head(reply, model, "chat.completion"), "choices": [choice], "usage": _usage(reply)}


def chat_chunks(reply: Reply, model: str, usage: bool) -> Iterator[str]:
    """Server-sent events: the whole message as one chunk, how it ended, the usage where it is asked for."""
    head = _head(reply, model, "chat.completion.chunk")
    delta = dict(chat_completion(reply, model)["choices"][0]["message"])
    if reply.call is not None:
        delta["tool_calls"] = [{"index": 0, **reply.call}]
    yield _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish}]})
    if usage:
        yield _event({**head, "choices": [], "usage": _usage(reply)})
    yield "data: [DONE]\n\n"


def response(reply: Reply, model: str) -> dict[str, Any]:
    """An answer of `/responses`."""
    details = {"reasoning_tokens": reply.reasoning_tokens}
    usage = {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": reply.completion_tokens,
        "output_tokens_details": details,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }
    cut = reply.flaw is not None
    return {
        "id": f"resp_{reply.id}",
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "instructions": None,
        "metadata": {},
        "output": list(_items(reply)),
        "parallel_tool_calls": False,
        "temperature": None,
        "top_p": None,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
    }


def response_events(reply: Reply, model: str) -> Iterator[str]:
    """Server-sent events: every item whole, and the response."""
    whole = response(reply, model)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
    for index, item in enumerate(whole["output"]):
        events.append({"type": "response.output_item.added", "output_index": index, "item": item})
        if item["type"] == "message":
            place = {"output_index": index, "item_id": item["id"], "content_index": 0}
            events.append({"type": "response.output_text.delta", **place, "delta": reply.content, "logprobs": []})
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append({"type": f"response.{whole['status']}", "response": whole})
    for number, event in enumerate(events):
        yield f"event: {event['type']}\n{_event({**event, 'sequence_number': number})}"


def _items(reply: Reply) -> Iterator[dict[str, Any]]:
    if reply.reasoning:
        thought = [{"type": "reasoning_text", "text": reply.reasoning}]
        yield {"type": "reasoning", "id": f"rs_{reply.id}", "summary": [], "content": thought, "status": "completed"}
    if reply.content or reply.call is None:
        text = {"type": "output_text", "text": reply.content, "annotations": []}
        status = "incomplete" if reply.flaw else "completed"
        yield {"type": "message", "id": f"msg_{reply.id}", "role": "assistant", "status": status, "content": [text]}
    if reply.call is not None:
        function = reply.call["function"]
        yield {"type": "function_call", "id": f"fc_{reply.id}", "call_id": reply.call["id"], "status": "completed",
               "name": function["name"], "arguments": function["arguments"]}  # fmt: skip


def _head(reply: Reply, model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{reply.id}", "object": kind, "created": int(time.time()), "model": model}


def _usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "completion_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
    }


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
