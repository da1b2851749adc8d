"""A user's own format: a function, named as `file.py:function` or `module:function`, that is given each row.

It runs in this process, and gets the row's JSON value. What it returns is the row in Harmony's terms, or a row that a
built-in format reads on; any other result makes the row bad, and never stops the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import CHANNELS, EFFORTS, Conversation, Message, Preference, Role
from counterpoint.data.formats.fields import describe
from counterpoint.data.user_code.loader import resolve

_FIX = "fix the row, or the function"
_LONGEST = 300


def call_format(function: str, value: Any) -> Conversation | Preference | dict[str, Any] | list[Any]:
    """The function's result for a row's JSON value. Raises RowError, ConfigError where there is no such function."""
    called = resolve(function)
    try:
        made = called(value)
        return _checked(made, function)
    except RowError:
        raise
    except ValueError as error:
        raise RowError("refused", "row", str(error)[:_LONGEST] or f"refused by {function}", _FIX) from None
    except (Exception, SystemExit) as error:
        what = f"{function}: {type(error).__name__}: {error}"[:_LONGEST]
        raise RowError("format_failed", "row", what, _FIX) from None


def _checked(made: Any, function: str) -> Conversation | Preference | dict[str, Any] | list[Any]:
    if made is None:
        raise RowError("refused", "row", f"{function} returned None", _FIX)
    if isinstance(made, Conversation):
        return _conversation(made, function)
    if isinstance(made, Preference):
        prompt = _conversation(made.prompt, function)
        sides = tuple(_messages(side, function) for side in (made.chosen, made.rejected))
        if any(side[-1].role != "assistant" for side in sides) or sides[0] == sides[1]:
            raise _wrong(function, "a Preference needs two different answers, each ending in the assistant's message")
        return Preference(prompt, *sides)
    if isinstance(made, (dict, list)):
        return made
    raise _wrong(function, f"it returned {describe(made)}, not a Conversation, a Preference, a dict or a list")


def _conversation(made: Conversation, function: str) -> Conversation:
    if not isinstance(made.instructions, str | None) or not isinstance(made.date, str | None):
        raise _wrong(function, "`instructions` and `date` are texts or None")
    if made.effort is not None and made.effort not in EFFORTS:
        raise _wrong(function, f"`effort` is none of {', '.join(EFFORTS)}")
    return replace(made, messages=_messages(made.messages, function), format=made.format or function)


def _messages(messages: Sequence[Any], function: str) -> tuple[Message, ...]:
    if not messages:
        raise _wrong(function, "no messages")
    for i, message in enumerate(messages):
        if not isinstance(message, Message):
            fault = f"is of type {type(message).__name__}, not Message"
        elif message.role not in get_args(Role):
            fault = f"has the role {message.role!r}, which is none of {', '.join(get_args(Role))}"
        elif not isinstance(message.content, str):
            fault = "has a content that is no text"
        elif message.role in ("assistant", "tool") and message.channel not in CHANNELS:
            fault = f"has a channel that is none of {', '.join(CHANNELS)}"
        elif message.role == "tool" and not message.name:
            fault = "is a tool's, without the tool's name"
        else:
            continue
        raise _wrong(function, f"messages[{i}] {fault}")
    return tuple(messages)


def _wrong(function: str, what: str) -> RowError:
    return RowError("format_failed", "row", f"{function}: {what}", "fix the function")
