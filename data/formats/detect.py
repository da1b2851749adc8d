"""Which format a row has: by the fields that only one format writes, from the surest sign to the weakest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from counterpoint.configs.data_section import Format
from counterpoint.configs.errors import RowError
from counterpoint.data.formats.anthropic import is_block
from counterpoint.data.formats.chat import THINKING_KEYS
from counterpoint.data.formats.fields import describe, one_of
from counterpoint.data.formats.harmony_raw import ID_KEYS, RESPONSE_KEYS, TEXT_KEYS, is_harmony_text
from counterpoint.data.formats.hermes import looks_tagged
from counterpoint.data.formats.openai import MESSAGE_KEYS, holds_messages
from counterpoint.data.formats.responses import ITEM_TYPES, PARAMETERS
from counterpoint.data.formats.rl import REFERENCE_KEYS, prompt_key
from counterpoint.data.formats.sessions import KEY as SESSION_KEY
from counterpoint.data.formats.sharegpt import KEYS as SHAREGPT_KEYS

FORMATS: tuple[str, ...] = get_args(Format)[1:]  # without `auto`


def detect(value: Any) -> str:
    """Name of the format of a row. Raises RowError where none fits."""
    if isinstance(value, list):
        return _of_messages(value, {})
    if not isinstance(value, dict):
        raise RowError("unknown_format", "row", f"is {describe(value)}", "write one JSON object a line")
    for find in (_by_pair, _by_chat, _by_text, _by_columns):
        if (format := find(value)) is not None:
            return format
    raise _unknown(value)


def _by_pair(row: Mapping[str, Any]) -> str | None:
    if "preferred_output" in row or "non_preferred_output" in row:
        return "openai_preference"
    if "chosen" in row and "rejected" in row:
        return "preference"
    if isinstance(row.get("label"), bool) and ("completion" in row or isinstance(row.get("messages"), list)):
        return "kto"
    return None


def _by_chat(row: Mapping[str, Any]) -> str | None:
    if isinstance(row.get(SESSION_KEY), list):
        return "claude_code"
    if isinstance(row.get(PARAMETERS), dict) or isinstance(row.get("output"), list):
        return "responses"
    for key in ("items", "input"):
        if isinstance(row.get(key), list) and any(_is_item(item) for item in row[key]):
            return "responses"
    for key in (*MESSAGE_KEYS, *SHAREGPT_KEYS):
        if holds_messages(row, key):
            return _of_messages(row[key], row)
    return None


def _of_messages(messages: list[Any], row: Mapping[str, Any]) -> str:
    """Format of a row with a list of messages."""
    signs: set[str] = set()
    for message in messages:
        if isinstance(message, dict):
            signs.update(_signs(message))
    for sign in ("sharegpt", "harmony"):
        if sign in signs:
            return sign
    if "responses" in signs and "calls" not in signs:
        return "responses"
    if "anthropic" in signs or isinstance(row.get("system"), (str, list)):
        return "anthropic"
    if any(isinstance(t, dict) and "input_schema" in t for t in _listed(row.get("tools"))):
        return "anthropic"
    if looks_tagged(messages):
        return "hermes"
    return "messages" if "thinking" in signs else "openai"


def _signs(message: dict[str, Any]) -> Iterator[str]:
    if "from" in message and "value" in message and "role" not in message:
        yield "sharegpt"
    if message.get("channel") is not None or message.get("recipient") is not None:
        yield "harmony"
    if "tool_calls" in message:
        yield "calls"
    if "type" in message and _is_item(message):
        yield "responses"
    content = message.get("content")
    if isinstance(content, list) and any(is_block(part) for part in content):
        yield "anthropic"
    for key in THINKING_KEYS:
        if message.get(key) is not None:
            yield "thinking"


def _is_item(item: Any) -> bool:
    """Whether an object is an item of the Responses API that no chat message looks like."""
    return (
        isinstance(item, dict)
        and one_of(item.get("type"), ITEM_TYPES)
        and ("role" in item) == (item["type"] == "message")
    )


def _by_text(row: Mapping[str, Any]) -> str | None:
    if any(_are_ids(row.get(key)) for key in ID_KEYS):
        return "harmony"
    if any(is_harmony_text(row.get(key)) for key in (*TEXT_KEYS, "prompt")):
        return "harmony"
    if any(is_harmony_text(row.get(key)) for key in RESPONSE_KEYS) and not isinstance(row.get("prompt"), list):
        return "harmony"
    return None


def _by_columns(row: Mapping[str, Any]) -> str | None:
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "user" in row and "final" in row:
        return "multilingual_thinking"
    if "prompt" in row and "completion" in row:
        return "completion"
    if prompt_key(row) is not None and ("prompt" in row or any(row.get(key) is not None for key in REFERENCE_KEYS)):
        return "rl"
    return None


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], int) and not isinstance(value[0], bool)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _unknown(row: Mapping[str, Any]) -> RowError:
    if "inputSchema" in row or "input_schema" in row or isinstance(row.get("tools"), list):
        fix = "name the file as data.tools, or write them in a row's tools"
        return RowError("tools_only", "row", "tool declarations without a conversation", fix)
    keys = ", ".join(list(map(str, row))[:8])[:200]
    what = f"no format has these fields ({keys})" if keys else "is an empty object"
    return RowError("unknown_format", "row", what, "name the format with --format, or write messages")
