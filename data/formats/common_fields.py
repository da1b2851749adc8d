"""Fields that rows of every format may carry: effort, date, weight, built-in tools; the rest is metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import EFFORTS, Effort
from counterpoint.data.formats.content import MEDIA_COLUMNS, media
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list, as_object, as_text, describe
from counterpoint.data.formats.loss_flags import ROW_FLAGS, row_weight
from counterpoint.data.formats.meaning import is_said

_NEAREST_EFFORT: dict[str, Effort] = {"minimal": "low", "none": "low", "xhigh": "high", "max": "high"}
_DATE = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])")
_COMMON = frozenset({"reasoning_effort", "builtin_tools", "chat_template_kwargs"})


def read_common(draft: Draft, row: Mapping[str, Any], read: frozenset[str], quiet: bool = False) -> None:
    """Takes the common fields and keeps every other one as metadata. quiet: reference fields, without a notice.

    Raises RowError, for media beside the messages too.
    """
    extras = row.get("chat_template_kwargs")
    if extras is not None:
        extras = as_object(extras, "chat_template_kwargs")
        for key in extras:
            if key not in ("reasoning_effort", "builtin_tools"):
                draft.unused(f"chat_template_kwargs.{key}", f"chat_template_kwargs.{key}", extras[key])
    for source, prefix in ((row, ""), (extras or {}, "chat_template_kwargs.")):
        if draft.effort is None and source.get("reasoning_effort") is not None:
            draft.effort = read_effort(draft, source["reasoning_effort"], f"{prefix}reasoning_effort")
        if source.get("builtin_tools") is not None:
            listed = as_list(source["builtin_tools"], f"{prefix}builtin_tools")
            draft.names.offer([as_text(name, f"{prefix}builtin_tools[{i}]") for i, name in enumerate(listed)])
    _read_named(draft, row)
    draft.weight = row_weight(row, draft.notice)
    for key, value in row.items():
        if key in read or key in _COMMON or value is None:
            continue
        if key in MEDIA_COLUMNS and is_said(value):
            media(MEDIA_COLUMNS[key], key, draft.options, draft.notice)
        if key == "weight":
            continue
        if quiet or key in ROW_FLAGS:
            draft.metadata[key] = value
        else:
            draft.unused(key, key, value)


def _read_named(draft: Draft, row: Mapping[str, Any]) -> None:
    """Effort and date from the fields that the options name."""
    options = draft.options
    if options.effort_field and (value := dotted(row, options.effort_field)) is not None:
        draft.effort = read_effort(draft, value, options.effort_field)
    if options.date_field and (value := dotted(row, options.date_field)) is not None:
        draft.date = read_date(value, options.date_field)


def dotted(row: Mapping[str, Any], path: str) -> Any:
    """`metadata.effort` of a row; None where any part is absent."""
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def read_effort(draft: Draft, value: Any, field: str) -> Effort:
    """low, medium or high; a level that gpt-oss does not know becomes the nearest, with a notice."""
    text = value.strip().lower() if isinstance(value, str) else ""
    for effort in EFFORTS:
        if text == effort:
            return effort
    if text in _NEAREST_EFFORT:
        draft.notice("effort", field, f"{text} is no level of gpt-oss: {_NEAREST_EFFORT[text]} was taken")
        return _NEAREST_EFFORT[text]
    what = f"is {value[:40]!r}" if isinstance(value, str) else f"is {describe(value)}"
    raise RowError("bad_effort", field, what, "write low, medium or high")


def read_date(value: Any, field: str) -> str:
    """YYYY-MM-DD out of a date or a timestamp that begins with one."""
    text = as_text(value, field)
    if not (found := _DATE.match(text)):
        raise RowError("bad_date", field, f"is {text[:40]!r}", "write YYYY-MM-DD")
    return found.group()
