"""The input formats, one line each. A format is one of `chat_formats`, or the module `counterpoint.data.formats.NAME`,
which has the functions `looks_like` and `read` of the protocol below; detection, conversion, and the names in messages
all come from the table.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from counterpoint.configs.errors import ConfigError, RowError
from counterpoint.data.formats.fields import describe
from counterpoint.data.user_code.loader import is_function, resolve

if TYPE_CHECKING:  # the command line imports this file for the names, without pydantic
    from counterpoint.configs.data_section import ConversionSettings
    from counterpoint.data.conversation import Conversation, Preference

AUTO = "auto"
# From the surest sign to the weakest: a row has the first format that it looks like.
FORMATS = (
    "openai_preference",
    "preference",
    "kto",
    "claude_code",
    "responses",
    "sharegpt",
    "harmony",
    "anthropic",
    "hermes",
    "messages",
    "openai",
    "alpaca",
    "multilingual_thinking",
    "completion",
    "columns",
    "rl",
)
_NO_TEXT = re.compile(
    r"(?:^|_)(?:id|uuid|source|category|type|model|date|time|lang|language|split|name|url|path|topic|reason|system|chat|text)$"
)
CHOICES = f"{', '.join((AUTO, *sorted(FORMATS)))}, or your own as file.py:function"


class Format(Protocol):
    """What the module of a format has. A row that is a list arrives as `{"messages": list}`."""

    def looks_like(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the signs of the format. Never raises, whatever the row holds."""
        ...

    def read(self, row: Mapping[str, Any], options: ConversionSettings) -> Conversation | Preference:
        """The row in Harmony's terms. Raises RowError."""
        ...


@cache
def format_named(name: str) -> Format:
    """A built-in format. Raises ConfigError."""
    if name not in FORMATS:
        raise ConfigError(f"unknown format `{name}`: {_choose(name)}")
    from counterpoint.data.formats.chat_formats import CHATS

    return CHATS.get(name) or cast(Format, import_module(f"counterpoint.data.formats.{name}"))


def detect(value: Any) -> str:
    """Name of the format of a row. Raises RowError where none fits."""
    row = {"messages": value} if isinstance(value, list) else value
    if not isinstance(row, dict):
        raise RowError("unknown_format", "row", f"is {describe(value)}", "write one JSON object a line")
    for name, format in _table():
        if format.looks_like(row):
            return name
    raise _unknown(row)


@cache
def _table() -> tuple[tuple[str, Format], ...]:
    return tuple((name, format_named(name)) for name in FORMATS)


def check_name(name: str) -> None:
    """ConfigError with the names where a setting names no format; the function of a user's own is not looked up."""
    if name != AUTO and name not in FORMATS and not is_function(name):
        raise ConfigError(_choose(name))


def check_format(name: str) -> None:
    """`check_name`, and of a user's format that its function is there."""
    check_name(name)
    if is_function(name):
        resolve(name)


def _choose(name: str) -> str:
    close = difflib.get_close_matches(name, (AUTO, *FORMATS), n=1)
    return f"it must be one of {CHOICES}" + (f"; did you mean `{close[0]}`?" if close else "")


def _unknown(row: Mapping[str, Any]) -> RowError:
    if "inputSchema" in row or "input_schema" in row or isinstance(row.get("tools"), list):
        fix = "name the file as data.tools, or write them in a row's tools"
        return RowError("tools_only", "row", "tool declarations without a conversation", fix)
    keys = ", ".join(list(map(str, row))[:8])[:200]
    what = f"no format has these fields ({keys})" if keys else "is an empty object"
    fix = "name the format with --format, or write messages"
    texts = [str(key) for key, value in row.items() if _may_be_said(str(key), value)]
    if len(texts) > 1:
        fix = (
            "say which column is what, as in data.train: "
            f"{{path: FILE, columns: {{prompt: {texts[0][:40]}, answer: {texts[1][:40]}}}}}, or write messages"
        )
    return RowError("unknown_format", "row", what, fix)


def _may_be_said(name: str, value: Any) -> bool:
    """Whether a column may be a question or an answer, for a proposal."""
    return isinstance(value, str) and bool(value) and not _NO_TEXT.search(name.lower())
