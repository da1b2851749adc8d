"""Who speaks in a message, under every name that is in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.fields import describe

Speaker = Literal["system", "user", "assistant", "call", "tool"]

_NAMES: dict[Speaker, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "ai", "model", "chatgpt", "bing", "bard"),
    "call": ("function_call", "tool_call", "function-call", "tool-call", "tool_calls", "function_calls", "tool_use"),
    "tool": (
        *("tool", "function", "observation", "ipython", "function_response", "tool_response", "function-response"),
        *("tool_result", "tool-result", "tool_results", "tool_output", "function_output", "function_result"),
    ),
}
SPEAKERS: dict[str, Speaker] = {name: speaker for speaker, names in _NAMES.items() for name in names}
ROLES = "system, developer, user, assistant, tool or function"
_NO_CHAT_TYPES = frozenset({"message", "text", "chat"})


def role_of(message: Mapping[str, Any]) -> tuple[str, Any]:
    """(the key, its value) of what names the speaker: `role`, ShareGPT's `from`, LangChain's `type`."""
    for key in ("role", "from"):
        if message.get(key) is not None:
            return key, message[key]
    kind = message.get("type")
    if isinstance(kind, str) and kind not in _NO_CHAT_TYPES and kind.lower() in SPEAKERS:
        return "type", kind
    return ("from", None) if "from" in message else ("role", None)


def speaker_named(name: Any, roles: Mapping[str, Speaker] | None = None) -> Speaker | None:
    """The speaker of a role's name; None where nobody is called so. roles: further names, of a user's own."""
    if not isinstance(name, str):
        return None
    if roles and name in roles:
        return roles[name]
    return SPEAKERS.get(name) or SPEAKERS.get(name.strip().lower())


def speaker_of(message: Mapping[str, Any], field: str, roles: Mapping[str, Speaker] | None = None) -> Speaker:
    """The speaker of a message. Raises RowError."""
    key, name = role_of(message)
    where = f"{field}.{key}" if field else key
    if name is None:
        raise RowError("no_role", where, "missing", f"write {ROLES}")
    speaker = speaker_named(name, roles)
    if speaker is None:
        what = f"an unknown role {name[:40]!r}" if isinstance(name, str) else f"is {describe(name)}"
        raise RowError("unknown_role", where, what, f"write {ROLES}, or say who it is in the source's `roles`")
    return speaker


def is_speaker(message: Any, speaker: Speaker) -> bool:
    """Whether anything is a message of that speaker."""
    return isinstance(message, dict) and speaker_named(role_of(message)[1]) == speaker
