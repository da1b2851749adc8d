"""OpenAI's Responses API: `input` and `output` items, `instructions`, flat tools; NeMo Gym's rows wrap the same.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.chat import chat_messages
from counterpoint.data.formats.chat_formats import is_turn
from counterpoint.data.formats.common_fields import read_common, read_effort
from counterpoint.data.formats.content import content_text
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations, read_response_format
from counterpoint.data.formats.draft import Call, Draft
from counterpoint.data.formats.fields import as_list, as_object, as_text, describe, join, one_of, text_of
from counterpoint.data.formats.harmony import names_channel
from counterpoint.data.formats.loss_flags import MESSAGE_FLAGS, message_weight
from counterpoint.data.formats.tagged_messages import add_answer, holds_markup

ITEM_TYPES = frozenset(
    {
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "code_interpreter_call",
        "mcp_call",
    }
)
_CALLS = frozenset({"function_call", "custom_tool_call"})
_PHASES: dict[str, Literal["commentary", "final"]] = {"commentary": "commentary", "final_answer": "final"}
_REQUEST = frozenset({"input", "output", "items", "instructions", "reasoning", "text", "response"})
_ECHO = frozenset({"output", "instructions", "reasoning", "text"})
_ITEM = frozenset(
    {
        *(
            "type",
            "id",
            "status",
            "role",
            "content",
            "phase",
            "call_id",
            "name",
            "arguments",
            "input",
            "output",
        ),
        *(*MESSAGE_FLAGS, "summary", "encrypted_content", "code", "outputs", "container_id", "server_label"),
    }
)
PARAMETERS = "responses_create_params"


def looks_like(row: Mapping[str, Any]) -> bool:
    if isinstance(row.get(PARAMETERS), dict) or isinstance(row.get("output"), list) or _logged(row) is not None:
        return True
    for key in ("items", "input"):
        if isinstance(row.get(key), list) and any(_is_item(item) for item in row[key]):
            return True
    messages = chat_messages(row) or ()
    return any(_is_item(message) for message in messages) and not any(_is_chat(message) for message in messages)


def _logged(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The response that a row holds apart from its request."""
    response = row.get("response")
    return response if isinstance(response, dict) and isinstance(response.get("output"), list) else None


def _is_item(item: Any) -> bool:
    """Whether an object is an item that no chat message looks like."""
    if not isinstance(item, dict) or "type" not in item:
        return False
    return one_of(item["type"], ITEM_TYPES) and ("role" in item) == (item["type"] == "message")


def _is_chat(message: Any) -> bool:
    """Whether a message has the sign of another format, which may have a `type` as well."""
    return is_turn(message) or names_channel(message) or (isinstance(message, dict) and "tool_calls" in message)


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """`input` and `output` (or `items`, or NeMo Gym's `responses_create_params` and `response`). Raises RowError."""
    draft = Draft("responses", options)
    if row.keys() == {"messages"}:  # as a list of items that is the whole row arrives
        row = {"items": row["messages"]}
    request, base = row, ""
    if row.get(PARAMETERS) is not None:
        request, base = as_object(row[PARAMETERS], PARAMETERS), PARAMETERS
    response = _logged(row) or {}
    for holder, where in ((request, base), (response, "response")):
        if where == base or not request.get("tools"):
            read_declarations(draft, {k: v for k, v in holder.items() if k in DECLARATIONS}, where)
        _read_settings(draft, holder, where, opening=where == base or request.get("instructions") is None)
    items = _items(request, row, base)
    quiet = not any(_is_output(item) for item, _ in items)
    own = _REQUEST | DECLARATIONS | {PARAMETERS} if base == "" else frozenset({PARAMETERS, "response"})
    read_common(draft, row, own, quiet=quiet)
    if base:
        _keep_rest(draft, request, _REQUEST | DECLARATIONS, PARAMETERS, quiet)
    if isinstance(row.get("response"), dict):
        _keep_rest(draft, row["response"], _ECHO | DECLARATIONS, "response", quiet)
    apart = [where.startswith("response.") for _, where in items]
    size = apart.index(True) if any(apart) else 0
    draft.is_context = True  # what a request holds was sampled for other requests
    add_items(draft, items[:size])
    draft.is_context = False
    add_items(draft, items[size:])
    return draft.finish()


def _keep_rest(draft: Draft, holder: Mapping[str, Any], read: frozenset[str], field: str, quiet: bool) -> None:
    """Everything in a request or a response except its items is metadata."""
    rest = {key: value for key, value in holder.items() if key not in read and value is not None}
    if rest and quiet:
        draft.metadata[field] = rest
    elif rest:
        draft.unused(f"{field}.*", field, rest)


def _read_settings(draft: Draft, request: Mapping[str, Any], base: str, opening: bool) -> None:
    """The settings of a request, or of a response, which repeats them. opening: whether the instructions are read."""
    instructions = text_of(request, "instructions", base) if opening else None
    if instructions is not None:
        draft.system(instructions, join(base, "instructions"))
    reasoning = request.get("reasoning")
    if draft.effort is None and isinstance(reasoning, dict) and reasoning.get("effort") is not None:
        draft.effort = read_effort(draft, reasoning["effort"], join(base, "reasoning.effort"))
    text = request.get("text")
    if not draft.response_formats and isinstance(text, dict) and text.get("format") is not None:
        draft.response_formats = read_response_format(draft, text["format"], join(base, "text.format"))


def _items(request: Mapping[str, Any], row: Mapping[str, Any], base: str) -> list[tuple[Any, str]]:
    """Every item with its path: of the request, then of the response."""
    found: list[tuple[Any, str]] = []
    for key in ("items", "input"):
        value, where = request.get(key), join(base, key)
        if isinstance(value, str):
            found.append(({"role": "user", "content": value}, where))
        elif value is not None:
            found.extend((item, f"{where}[{i}]") for i, item in enumerate(as_list(value, where)))
    response = row.get("response")
    if isinstance(response, dict) and response.get("output") is not None:
        where, value = "response.output", response["output"]
    else:
        where, value = "output", row.get("output")
    if value is not None:
        found.extend((item, f"{where}[{i}]") for i, item in enumerate(as_list(value, where)))
    if not found:
        raise RowError("no_messages", join(base, "input"), "holds no items", "write a user message and its answer")
    return found


def _is_output(item: Any) -> bool:
    return isinstance(item, dict) and (
        item.get("role") == "assistant" or one_of(item.get("type"), ITEM_TYPES - {"message"})
    )


def add_items(draft: Draft, items: Sequence[tuple[Any, str]]) -> None:
    """Adds every item; calls that follow each other were made at once. Raises RowError."""
    calls: list[Call] = []
    weight = 1.0
    for item, where in items:
        item = as_object(item, where)
        kind = item.get("type", "message")
        if one_of(kind, _CALLS):
            weight = message_weight(item, where, draft.notice)
            calls.append(_call(item, where, custom=kind == "custom_tool_call"))
            _unused(draft, item, where)
            continue
        if calls:
            draft.assistant(calls[0].field, calls=calls, weight=weight)
            calls = []
        _item(draft, item, str(kind), where)
        _unused(draft, item, where)
    if calls:
        draft.assistant(calls[0].field, calls=calls, weight=weight)


def _unused(draft: Draft, item: Mapping[str, Any], field: str) -> None:
    for key, value in item.items():
        if key not in _ITEM and value is not None:
            draft.unused(f"items[].{key}", f"{field}.{key}", value)


def _item(draft: Draft, item: Mapping[str, Any], kind: str, field: str) -> None:
    if kind == "message":
        _message(draft, item, field)
    elif kind == "reasoning":
        _reasoning(draft, item, field)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        text = content_text(item.get("output"), f"{field}.output", draft.options, draft.notice)
        if text is None:
            raise RowError("no_content", f"{field}.output", "missing or null", "write the result as a string")
        draft.result(text, f"{field}.output", as_text(item.get("call_id"), f"{field}.call_id"))
    elif kind == "code_interpreter_call":
        _code_call(draft, item, field)
    elif kind == "mcp_call":
        id_ = text_of(item, "id", field)
        name = as_text(item.get("name"), f"{field}.name")
        draft.assistant(
            field,
            calls=[Call(name, item.get("arguments"), field, id_)],
            weight=message_weight(item, field, draft.notice),
        )
        if item.get("output") is not None:
            draft.result(as_text(item["output"], f"{field}.output"), f"{field}.output", id_)
    else:
        raise RowError("unknown_item", f"{field}.type", f"is {kind[:40]!r}", f"write {', '.join(sorted(ITEM_TYPES))}")


def _message(draft: Draft, item: Mapping[str, Any], field: str) -> None:
    role = item.get("role")
    where = f"{field}.content"
    text = content_text(item.get("content"), where, draft.options, draft.notice)
    if text is None:
        raise RowError("no_content", where, "missing or null", "write a string or text parts")
    if role in ("system", "developer"):
        draft.system(text, where)
    elif role == "user":
        draft.user(text, where)
    elif role == "assistant":
        phase = item.get("phase")
        if phase is not None and not one_of(phase, _PHASES):
            raise RowError("bad_phase", f"{field}.phase", f"is {str(phase)[:40]!r}", "write commentary or final_answer")
        weight = message_weight(item, field, draft.notice)
        if holds_markup(draft, text):
            draft.notice("tags_in_text", where, "thinking or calls written as tags were taken out")
        add_answer(draft, field, text=text, text_field=where, weight=weight, phase=_PHASES.get(phase or ""))
    else:
        what = f"is {role[:40]!r}" if isinstance(role, str) else f"is {describe(role)}"
        raise RowError("unknown_role", f"{field}.role", what, "write system, developer, user or assistant")


def _reasoning(draft: Draft, item: Mapping[str, Any], field: str) -> None:
    """The reasoning's content; else its summary, with a notice; encrypted content cannot be read."""
    weight = message_weight(item, field, draft.notice)
    if item.get("encrypted_content") is not None:
        draft.notice("encrypted_reasoning", f"{field}.encrypted_content", "encrypted reasoning was left out")
    for key in ("content", "summary"):
        value = item.get(key)
        if not value:
            continue
        parts = [value] if isinstance(value, str) else as_list(value, f"{field}.{key}")
        texts = [
            content_text([part], f"{field}.{key}[{i}]", draft.options, draft.notice) or ""
            for i, part in enumerate(parts)
        ]
        thinking = "\n\n".join(text for text in texts if text.strip())
        if not thinking:
            continue
        if key == "summary":
            draft.notice("reasoning_summary", f"{field}.summary", "a summary, not the chain of thought itself")
        draft.assistant(field, thinking=thinking, weight=weight)
        return


def _call(item: Mapping[str, Any], field: str, custom: bool) -> Call:
    name = as_text(item.get("name"), f"{field}.name")
    id_ = text_of(item, "call_id", field) or text_of(item, "id", field)
    key = "input" if custom else "arguments"
    arguments = as_text(item.get(key), f"{field}.input") if custom else item.get(key)
    return Call(name, arguments, field, id_, f"{field}.{key}", custom)


def _code_call(draft: Draft, item: Mapping[str, Any], field: str) -> None:
    draft.names.offer(("python",))
    id_ = text_of(item, "id", field)
    code = Call("python", as_text(item.get("code"), f"{field}.code"), field, id_, f"{field}.code")
    draft.assistant(field, calls=[code], weight=message_weight(item, field, draft.notice))
    logs = []
    for i, output in enumerate(as_list(item.get("outputs") or [], f"{field}.outputs")):
        where = f"{field}.outputs[{i}]"
        logs.append(as_text(as_object(output, where).get("logs"), f"{where}.logs"))
    if item.get("outputs") is not None:
        draft.result("".join(logs), f"{field}.outputs", id_)
