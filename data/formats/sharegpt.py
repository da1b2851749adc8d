"""ShareGPT: `conversations` of `{"from", "value"}`, with `tools` as a list or as JSON text, as LLaMA-Factory has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.chat import chat_messages, holds_messages
from counterpoint.data.formats.common_fields import read_common, read_weight
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations
from counterpoint.data.formats.draft import Call, Draft
from counterpoint.data.formats.fields import as_list, as_object, as_text, describe, text_of
from counterpoint.data.formats.tagged_messages import (
    add_responses,
    add_tagged_assistant,
    add_tagged_system,
    looks_tagged,
)

KEYS = ("conversations", "conversation", "messages")
SYSTEM = frozenset({"system", "developer"})
USER = frozenset({"human", "user", "prompter"})
ASSISTANT = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard", "model"})
CALL = frozenset({"function_call", "tool_call"})
RESULT = frozenset({"observation", "tool", "function_response", "tool_response", "function"})
_ROLES = "system, human, gpt, function_call or observation"
_READ = frozenset({"from", "value", "weight", "name"})


def looks_like(row: Mapping[str, Any]) -> bool:
    return any(is_turn(message) for message in chat_messages(row) or ())


def is_turn(message: Any) -> bool:
    return isinstance(message, dict) and "from" in message and "value" in message and "role" not in message


def add_turns(draft: Draft, turns: Any, field: str, tags: bool) -> None:
    """Adds every turn to the draft. tags: texts hold Hermes tags. Raises RowError."""
    if not as_list(turns, field):
        raise RowError("no_messages", field, "is an empty list", "write a human turn and its answer")
    for i, turn in enumerate(turns):
        where = f"{field}[{i}]"
        turn = as_object(turn, where)
        speaker, text = turn.get("from"), as_text(turn.get("value"), f"{where}.value")
        weight = read_weight(turn, where)
        role = _role(speaker, f"{where}.from")
        if role == "call":
            draft.assistant(where, calls=_calls(text, f"{where}.value"), weight=weight)
        elif role == "system":
            (add_tagged_system if tags else Draft.system)(draft, text, f"{where}.value")
        elif role == "assistant" and tags:
            add_tagged_assistant(draft, text, f"{where}.value", weight=weight)
        elif role == "assistant":
            draft.assistant(where, text=text, weight=weight, text_field=f"{where}.value")
        elif tags and add_responses(draft, text, f"{where}.value"):
            pass
        elif role == "user":
            draft.user(text, f"{where}.value")
        else:
            draft.result(text, f"{where}.value", name=text_of(turn, "name", where))
        for key, value in turn.items():
            if key not in _READ and value is not None:
                draft.unused(f"conversations[].{key}", f"{where}.{key}", value)


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """A row with `conversations`, and maybe `system` and `tools`. Raises RowError."""
    key = next((k for k in KEYS if holds_messages(row, k)), KEYS[0])
    draft = Draft("sharegpt", options)
    read_declarations(draft, row, "")
    if (system := text_of(row, "system", "")) is not None:
        draft.system(system, "system")
    turns = row.get(key)
    last = turns[-1] if isinstance(turns, list) and turns else None
    quiet = isinstance(last, dict) and str(last.get("from")).lower() in USER
    read_common(draft, row, DECLARATIONS | {key, "system"}, quiet=quiet)
    add_turns(draft, turns, key, tags=looks_tagged(turns))
    return draft.finish()


def _role(speaker: Any, field: str) -> str:
    named = speaker.strip().lower() if isinstance(speaker, str) else ""
    for role, names in (("system", SYSTEM), ("user", USER), ("assistant", ASSISTANT), ("call", CALL), ("tool", RESULT)):
        if named in names:
            return role
    what = f"an unknown speaker {speaker[:40]!r}" if isinstance(speaker, str) else f"is {describe(speaker)}"
    raise RowError("unknown_role", field, what, f"write {_ROLES}")


def _calls(text: str, field: str) -> list[Call]:
    """`{"name", "arguments"}` or a list of them."""
    fix = 'write {"name": "...", "arguments": {...}} or a list of them'
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RowError("call_not_json", field, f"not JSON ({error})", fix) from None
    calls: list[Call] = []
    for i, item in enumerate(value if isinstance(value, list) else [value]):
        where = f"{field}[{i}]" if isinstance(value, list) else field
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise RowError("bad_call", where, "is not an object with a name", fix)
        calls.append(Call(item["name"], item.get("arguments", item.get("parameters")), where, native=True))
    if not calls:
        raise RowError("bad_call", field, "is an empty list", fix)
    return calls
