"""What a client of OpenAI's API asks for, in one shape: chat completions and responses as chat messages.

What gpt-oss cannot do is refused with HTTP 400; a field that has no effect is named, never dropped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from counterpoint.data.conversation import Effort

Message = Mapping[str, Any]
"""A chat message with text as `content`: role, content, and of an assistant `tool_calls`, `reasoning_content`, of a
tool `tool_call_id`."""

EFFORTS: Mapping[str, Effort] = {
    "none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"
}  # fmt: skip
_OWNED = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "reasoning_effort": "effort",
}
_READ = frozenset(
    {
        *(
            "model",
            "messages",
            "input",
            "instructions",
            "tools",
            "tool_choice",
            "stream",
            "stream_options",
            "n",
            "stop",
        ),
        *("response_format", "text", "previous_response_id", "reasoning", "logit_bias", *_OWNED),
    }
)
_NO_EFFECT = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "prompt_cache_key", "safety_identifier"),
        *("include", "truncation", "background", "verbosity", "prompt_cache_retention", "extra_headers"),
    }
)
"""What asks for nothing of the sample: who asks, and how answers are stored. Replies never have parallel calls."""
_NOTHING: tuple[Any, ...] = (None, 0, False, "", [], {})
_TEXTS = ("text", "input_text", "output_text", "refusal")


class RefusedError(Exception):
    """A request that is answered with an HTTP status and OpenAI's error object. param: the field at fault."""

    def __init__(self, what: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(what)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True)
class Asked:
    """One request. wanted: of `temperature`, `top_p`, `seed`, `max_tokens` and `effort` those that it names. ignored:
    other fields that would change a sample and have no effect. stop: texts at which the reply's content ends."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    response_format: Mapping[str, Any] | None = None
    wanted: Mapping[str, Any] | None = None
    ignored: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage_at_end: bool = False

    def want(self, name: str, default: Any) -> Any:
        return (self.wanted or {}).get(name, default)

    @property
    def effort(self) -> Effort | None:
        return self.want("effort", None)


def chat_request(body: Mapping[str, Any]) -> Asked:
    """A body of `/chat/completions`. RefusedError for what cannot be answered."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise RefusedError("messages: a list of at least one message is needed", "messages")
    if body.get("functions") or body.get("function_call"):
        raise RefusedError("functions: their successor `tools` is read", "functions")
    messages = tuple(_message(each, f"messages[{n}]") for n, each in enumerate(given))
    return _asked(body, messages, _tools(body.get("tools")), body.get("response_format"))


def responses_request(body: Mapping[str, Any], earlier: Sequence[Message] = ()) -> Asked:
    """A body of `/responses`. earlier: the messages up to and with the reply that `previous_response_id` names."""
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise RefusedError("input: a text or a list of at least one item is needed", "input")
    messages = [*earlier, *_messages_of(items)]
    if isinstance(told := body.get("instructions"), str) and told:
        messages = [{"role": "system", "content": told}, *(m for m in messages if m["role"] != "system" or not earlier)]
    format = (body.get("text") or {}).get("format") if isinstance(body.get("text"), Mapping) else None
    if isinstance(format, Mapping) and format.get("type") == "json_schema":
        format = {"type": "json_schema", "json_schema": {k: v for k, v in format.items() if k != "type"}}
    return _asked(body, tuple(messages), _tools(body.get("tools")), format)


def _asked(body: Mapping[str, Any], messages: tuple[Message, ...], tools: Any, format: Any) -> Asked:
    if (body.get("n") or 1) != 1:
        raise RefusedError("n: one completion a request is given: send several requests", "n")
    if body.get("logit_bias"):
        raise RefusedError("logit_bias: it is not applied: leave it out", "logit_bias")
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise RefusedError("tool_choice: no call is forced: `auto` and `none` are known", "tool_choice")
    wanted = {name: body[key] for key, name in _OWNED.items() if body.get(key) is not None}
    if isinstance(body.get("reasoning"), Mapping) and (effort := body["reasoning"].get("effort")) is not None:
        wanted["effort"] = effort
    if "effort" in wanted:
        if wanted["effort"] not in EFFORTS:
            raise RefusedError(f"reasoning_effort: known are {', '.join(EFFORTS)}", "reasoning_effort")
        wanted["effort"] = EFFORTS[wanted["effort"]]
    for name, kinds in (("temperature", (int, float)), ("seed", (int,)), ("max_tokens", (int,))):
        value = wanted.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value < 2**63):
            raise RefusedError(f"{name}: it is no number of 0 or more", name)
    stop = body.get("stop")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    options = body.get("stream_options")
    return Asked(
        messages,
        () if choice == "none" else tools,
        format if isinstance(format, Mapping) and format.get("type") != "text" else None,
        wanted,
        tuple(
            key
            for key, value in body.items()
            if key not in _READ | _NO_EFFECT and value not in (None, 0, False, [], {})
        ),
        tuple(text for text in stops if isinstance(text, str) and text),
        bool(body.get("stream")),
        isinstance(options, Mapping) and bool(options.get("include_usage")),
    )


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise RefusedError(f"{where}: is no message: an object with a `role` is needed", where)
    out: dict[str, Any] = {"role": given["role"], "content": _text(given.get("content"), f"{where}.content")}
    if given.get("name") is not None:
        out["name"] = given["name"]
    if given["role"] == "tool":
        out["tool_call_id"] = str(given.get("tool_call_id") or "")
    thought = next((given[key] for key in ("reasoning_content", "reasoning") if isinstance(given.get(key), str)), None)
    if thought:
        out["reasoning_content"] = thought
    if calls := given.get("tool_calls"):
        out["tool_calls"] = [_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(calls)]
    return out


def _call(given: Any, where: str) -> Mapping[str, Any]:
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RefusedError(f"{where}: is no call of a function", where)
    arguments = function.get("arguments") or ""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return called(str(given.get("id") or ""), function["name"], text)


def called(id: str, name: str, arguments: str) -> Mapping[str, Any]:
    """A call as chat messages hold it."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _text(content: Any, where: str) -> str:
    """The text of a content, or of its parts joined."""
    if content is None or isinstance(content, str):
        return _writable(content or "")
    if not isinstance(content, list):
        raise RefusedError(f"{where}: is no text", where)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXTS:
            raise RefusedError(f"{where}: holds {kind or type(part).__name__}, and gpt-oss reads text only", where)
        texts.append(str(part.get("text", part.get("refusal", ""))))
    return _writable("".join(texts))


def _writable(text: str) -> str:
    """JSON may hold half of a surrogate pair, which no token writes."""
    return text.encode("utf-8", "replace").decode()


def _tools(given: Sequence[Any] | None) -> tuple[Mapping[str, Any], ...]:
    """Functions in the chat API's form, whichever of the two they came in."""
    tools = []
    for n, each in enumerate(given or ()):
        if not isinstance(each, Mapping) or each.get("type") != "function":
            kind = each.get("type") if isinstance(each, Mapping) else type(each).__name__
            raise RefusedError(f"tools[{n}]: is of type {kind}: functions alone are called here", f"tools[{n}]")
        function = each.get("function", {key: value for key, value in each.items() if key != "type"})
        tools.append({"type": "function", "function": function})
    return tuple(tools)


def _messages_of(items: Sequence[Any]) -> list[Message]:
    """Items of the Responses API: what an assistant's reply consists of in a row becomes one message."""
    out: list[Message] = []
    said: dict[str, Any] | None = None
    for n, item in enumerate(items):
        where = f"input[{n}]"
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        part: dict[str, Any] = {}
        if kind == "reasoning":
            parts: Any = item.get("content") or item.get("summary") or ()
            part = {"reasoning_content": "".join(str(each.get("text", "")) for each in parts)}
        elif kind == "function_call":
            name, id = str(item.get("name")), str(item.get("call_id") or item.get("id") or "")
            part = {"tool_calls": [called(id, name, str(item.get("arguments") or ""))]}
        elif kind == "message" and item.get("role") == "assistant":
            part = {"content": _text(item.get("content"), f"{where}.content")}
        if part:
            if said is None:
                out.append(said := {"role": "assistant", "content": ""})
            for key, value in part.items():
                said[key] = said[key] + value if key in said else value
            continue
        said = None
        if kind == "function_call_output":
            text = _text(item.get("output"), f"{where}.output")
            out.append({"role": "tool", "content": text, "tool_call_id": str(item.get("call_id") or "")})
        elif kind == "message":
            out.append(_message(item, where))
        else:
            raise RefusedError(f"{where}: items of type {kind} are not read", where)
    return out


def key_of(message: Message) -> tuple[Any, ...]:
    """Equal for messages that say the same: arguments compared as JSON, thoughts and outer white space left out."""
    role = "system" if message["role"] == "developer" else message["role"]
    text = message["content"].strip() if role == "assistant" else message["content"]
    calls = [(call["id"], call["function"]["name"], _value(call["function"]["arguments"]))
             for call in message.get("tool_calls", ())]  # fmt: skip
    return (role, text, message.get("tool_call_id"), message.get("name"), tuple(calls))


def _value(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def effort_named(asked: Asked, default: Effort) -> Effort:
    return cast(Effort, asked.want("effort", default))
