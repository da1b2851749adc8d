"""The completions in a row of a server's log, for `counterpoint check`: as ids or text, at any of the places where
servers write them, with what they were sampled under."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import ResponseFormat
from counterpoint.data.harmony.argument_schema import schema_fault
from counterpoint.data.harmony.checker import Rules, read
from counterpoint.data.harmony.grammar import ASSISTANT
from counterpoint.data.harmony.tool_declarations import read_tools
from counterpoint.data.harmony.vocabulary import CALL, RETURN, START, load_vocabulary

EFFORTS = ("low", "medium", "high")
_STOPPED = frozenset({"stop", "tool_calls", "function_call", "end_turn", "tool_use", "eos", "eos_token", "stop_str"})
_IDS = (
    "tokens",
    "token_ids",
    "output_ids",
    "output_token_ids",
    "completion_ids",
    "completion_token_ids",
    "response_ids",
)
_TEXTS = ("text", "response", "completion", "output", "generated_text", "content", "raw")
_LISTS = ("choices", "outputs")
_AROUND = ("response", "body", "completion", "output", "result")
_REQUESTS = ("request", "body", "params")
_SPECIAL = re.compile(r"<\|(?:start|end|message|channel|constrain|call|return)\|>")


@dataclass(frozen=True, slots=True)
class Sampled:
    """A completion. place: `[1]` for the second of a row. ids: it alone; skipped: ids of the prompt that stood before
    it. stop_added: the stop token that a server cut off was restored."""

    place: str
    ids: list[int]
    rules: Rules
    stop_added: bool
    skipped: int


def completions_of(row: Mapping[str, Any], defaults: Rules) -> Iterator[Sampled]:
    """Raises RowError where there is none, or where its tokens are not in the log."""
    inner, path = _taken_out(row)
    rules = _rules({**_request_of(row), **inner, **row}, defaults)
    listed = next((key for key in _LISTS if isinstance(inner.get(key), list) and inner[key]), None)
    if listed is None:
        yield _sampled(inner, {}, path, "", rules)
        return
    for number, choice in enumerate(inner[listed]):
        field = f"{path}{listed}[{number}]"
        if not isinstance(choice, Mapping):
            raise RowError("wrong_type", field, "is not an object", "write what the server sent")
        place = f"[{number}]" if len(inner[listed]) > 1 else ""
        yield _sampled(choice, inner, f"{field}.", place, _finished(rules, choice, f"{field}."))


def _taken_out(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The object that holds the completion, out of what logs and batch files put around it, and its path."""
    inner, path = row, ""
    for _ in range(4):
        if any(inner.get(key) is not None for key in (*_IDS, *_LISTS)):
            break
        key = next((key for key in _AROUND if isinstance(inner.get(key), Mapping)), None)
        if key is None:
            break
        inner, path = inner[key], f"{path}{key}."
    return inner, path


def _request_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request that stands beside a response."""
    key = next((key for key in _REQUESTS if isinstance(row.get(key), Mapping)), None)
    return {} if key is None else {k: v for k, v in row[key].items() if k not in (*_IDS, *_TEXTS, *_LISTS)}


def _sampled(holder: Mapping[str, Any], around: Mapping[str, Any], path: str, place: str, rules: Rules) -> Sampled:
    ids, stop_added = _ids(holder, path, rules)
    prompt = holder.get("prompt_token_ids") or around.get("prompt_token_ids")
    skipped = _prompt_before(ids, prompt if isinstance(prompt, list) else [])
    return Sampled(place, ids[skipped:], rules, stop_added, skipped)


def _ids(holder: Mapping[str, Any], path: str, rules: Rules) -> tuple[list[int], bool]:
    key = next((key for key in _IDS if holder.get(key) is not None), None)
    if key is not None:
        if not isinstance(holder[key], list):
            raise RowError("wrong_type", path + key, "is not a list", "write the completion's token ids")
        return holder[key], False
    key = next((key for key in _TEXTS if holder.get(key) is not None), None)
    message = holder.get("message")
    if key is None and isinstance(message, Mapping):
        return _text_ids(_message_text(message, f"{path}message"), rules)
    if key is None or (key == "output" and isinstance(holder[key], list)):
        if key is not None:
            raise _parsed(path + key)
        raise RowError(
            "no_completion", f"{path}tokens", "the row holds no completion", 'add "tokens": [...] or "text": "..."'
        )
    text = holder[key]
    if not isinstance(text, str):
        raise RowError("wrong_type", path + key, "is not a string", "write the completion as raw Harmony text")
    if text and not _SPECIAL.search(text):
        raise RowError(
            "special_tokens_stripped",
            path + key,
            "not one special token is in it: they were stripped",
            "sample with skip_special_tokens: false, or log the token ids",
        )
    return _text_ids(text, rules)


def _message_text(message: Mapping[str, Any], field: str) -> str:
    """The text of a chat message that was not parsed; RowError for one that was."""
    content = message.get("content")
    if isinstance(content, str) and _SPECIAL.search(content) and not message.get("tool_calls"):
        return content
    raise _parsed(field)


def _parsed(field: str) -> RowError:
    return RowError(
        "parsed_message",
        field,
        "the server has parsed the completion, so its tokens are not in the log",
        "log the token ids (vLLM: return_token_ids: true), or the raw text of /v1/completions",
    )


def _text_ids(text: str, rules: Rules) -> tuple[list[int], bool]:
    ids = load_vocabulary().encode_with_specials(text)
    if rules.finish_reason not in _STOPPED:
        return ids, False
    found = read(ids).scan
    if found.state != "body":
        return ids, False
    return [*ids, CALL if found.spans[-1].header.recipient is not None else RETURN], True


def _prompt_before(ids: list[int], prompt: list[int]) -> int:
    """How many ids of a prompt, up to its `<|start|>assistant`, stand before the completion. A prompt begins with a
    system or a developer message; a model that begins with a user's is wrong, and judged."""
    if prompt and ids[: len(prompt)] == prompt:
        return len(prompt)
    opening = [[START, *load_vocabulary().encode(role)] for role in ("system", "developer")]
    if not any(ids[: len(start)] == start for start in opening):
        return 0
    starts = [at for at, id_ in enumerate(ids) if id_ == START]
    last = max(at for at in starts if ids[at + 1 : at + 2] != [ASSISTANT])
    begins = next((at for at in starts if at > last), None)
    return 0 if begins is None else begins + 2


def _rules(row: Mapping[str, Any], defaults: Rules) -> Rules:
    rules = with_tools(defaults, row, "")
    reasoning = row.get("reasoning")
    effort = row.get("effort", row.get("reasoning_effort"))
    if effort is None and isinstance(reasoning, Mapping):
        effort = reasoning.get("effort")
    if effort is not None:
        level = effort.strip().lower() if isinstance(effort, str) else ""
        if level not in EFFORTS:
            raise RowError("bad_effort", "effort", f"is {str(effort)[:40]!r}", "write low, medium or high")
        rules = replace(rules, effort=level)
    return replace(_finished(rules, row, ""), response_format=_response_format(row.get("response_format")))


def _finished(rules: Rules, row: Mapping[str, Any], path: str) -> Rules:
    """With the reason for which sampling ended: `finish_reason`, SGLang's `meta_info`, llama.cpp's `stop_type`."""
    about = row.get("meta_info")
    reason = row.get("finish_reason", about.get("finish_reason") if isinstance(about, Mapping) else None)
    if isinstance(reason, Mapping):
        reason = reason.get("type")
    if reason is None and isinstance(row.get("stop_type"), str):
        reason = "length" if row["stop_type"] == "limit" else "stop"
    if reason is None:
        return rules
    if not isinstance(reason, str):
        raise RowError("wrong_type", f"{path}finish_reason", "is not a string", "write stop, length, or leave it out")
    return replace(rules, finish_reason=reason)


def _response_format(wanted: Any) -> ResponseFormat | bool:
    if not isinstance(wanted, (Mapping, bool, type(None))):
        raise RowError("wrong_type", "response_format", "is not an object", "write OpenAI's response_format, or true")
    if not isinstance(wanted, Mapping):
        return bool(wanted)
    kind, named = wanted.get("type"), wanted.get("json_schema", wanted)
    if kind == "json_object":
        return ResponseFormat("json_object", {"type": "object"})
    if kind == "json_schema" and isinstance(named, Mapping) and isinstance(named.get("schema"), Mapping):
        return ResponseFormat(str(named.get("name") or "response"), named["schema"])
    return kind not in (None, "text")


def with_tools(rules: Rules, row: Mapping[str, Any], source: str) -> Rules:
    """Tools that are given make the list complete: a call to any other is unknown, a built-in tool not offered."""
    offered = row.get("builtin_tools")
    if offered is not None and not (isinstance(offered, list) and all(isinstance(name, str) for name in offered)):
        raise RowError("wrong_type", "builtin_tools", "is not a list of names", 'write ["python", "browser"]')
    if row.get("tools") is None:
        return rules if offered is None else replace(rules, builtin_tools=tuple(offered))
    read = read_tools(row["tools"], f"{source}: tools" if source else "tools")
    for tool in read.tools:
        if tool.parameters is not None and (fault := schema_fault(tool.parameters)) is not None:
            _tell_once(f"tool {tool.name[:80]}: its schema is broken, so its arguments are not checked: {fault}")
    return replace(rules, tools=read.tools, builtin_tools=(*read.builtin_tools, *(offered or ())))


@lru_cache(maxsize=1024)
def _tell_once(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr)
