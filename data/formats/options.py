"""The choices that a source format leaves open: each has a default and is a setting (section `data` of a run file)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """One source of rows.

    path: a file, a folder, `hf:NAME[:split]`, or `example:NAME`. format: a name of `counterpoint.data.formats.detect`.
    weight: how often its rows are taken: 2.0 takes each twice, 0.5 every second one. rows: only the first so many.
    """

    path: str
    format: str = "auto"
    weight: float = 1.0
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How ambiguous rows are read. `quarantine` sets such a row aside with its reason; every other use of an option is
    recorded as a Notice on the conversation.

    text_beside_call: text of an assistant message that also calls a tool; beside thinking it is always the preamble.
    parallel_calls: several calls in one message: `pair` writes call, result, call, result; `first` keeps one.
    calls_without_result: `first` keeps the first call of a message that has no result and counts the rest.
    unmatched_results: results without a usable id: `order` pairs them by name, then by order.
    double_encoded_arguments: `decode` reads arguments that are a JSON string inside a JSON string once more.
    object_arguments: `text` writes arguments that are given as an object as compact JSON.
    late_system: a system message after the conversation began: a developer message in its place.
    harmony_system: a system text that is Harmony's own block: `parse` takes effort, date and identity out of it.
    images: `placeholder` writes `[image]` (`[audio]`, `[file]`) in the place of what gpt-oss cannot read.
    unanswered: rows that end in a user message or a tool's result: `keep` leaves them (a prompt; training ignores the
        end), `trim` cuts back to the last assistant message.
    harmony_markup: control tokens typed inside a text: `text` keeps them as plain text.
    tool_names: names with characters outside `[A-Za-z0-9_-]`: `rename` writes underscores, in declarations, calls and
        results alike.
    date_field, effort_field: dotted path of the field that holds a row's date (YYYY-MM-DD) or its effort.
    tools: a JSON file with the tools of rows that declare none: OpenAI's list, or an MCP server's `{"tools": [...]}`.
    builtin_tools: of `python` and `browser`: calls to them go to the built-in tool, not to `functions`, in every row.
    """

    text_beside_call: Literal["preamble", "analysis"] = "preamble"
    parallel_calls: Literal["pair", "first"] = "pair"
    calls_without_result: Literal["first", "quarantine"] = "first"
    unmatched_results: Literal["order", "quarantine"] = "order"
    double_encoded_arguments: Literal["decode", "quarantine"] = "decode"
    object_arguments: Literal["text", "quarantine"] = "text"
    late_system: Literal["developer", "quarantine"] = "developer"
    harmony_system: Literal["parse", "text"] = "parse"
    images: Literal["quarantine", "placeholder"] = "quarantine"
    unanswered: Literal["keep", "trim", "quarantine"] = "keep"
    harmony_markup: Literal["text", "quarantine"] = "text"
    tool_names: Literal["keep", "rename"] = "keep"
    date_field: str | None = None
    effort_field: str | None = None
    tools: str | None = None
    builtin_tools: tuple[str, ...] = ()
