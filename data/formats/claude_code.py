"""Session logs of Claude Code: a line is an event; a session is a row (`{"loglines": [...]}`, or lines of a JSONL)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list, as_object, one_of
from counterpoint.data.formats.message import add_message
from counterpoint.data.rows.row import AnyRow, RawRow, UnreadRow
from counterpoint.data.rows.row import read as read_row

KEY = "loglines"
_SPOKEN = frozenset({"user", "assistant"})
_LOG_KEYS = frozenset({"sessionId", "uuid", "leafUuid", "parentUuid"})
_KEY_TEXTS = tuple(f'"{key}"'.encode() for key in sorted(_LOG_KEYS))
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")


def looks_like(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get(KEY), list)


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """The main thread of a session; events that are no messages are counted and kept out. Raises RowError."""
    draft = Draft("claude_code", options)
    read_common(draft, row, frozenset({KEY}))
    draft.notice("log_fields", KEY, "of every event only the message was read")
    for i, line in enumerate(as_list(row.get(KEY), KEY)):
        where = f"{KEY}[{i}]"
        line = as_object(line, where)
        if not one_of(line.get("type"), _SPOKEN):
            draft.notice("log_event", where, f"an event of type {str(line.get('type'))[:40]!r} is no message")
        elif line.get("isSidechain") or line.get("isMeta"):
            draft.notice("side_message", where, "a message of a side thread or of the program was left out")
        else:
            if line.get("isCompactSummary"):
                draft.notice("compact_summary", where, "a summary of earlier turns was kept as a user message")
            add_message(
                draft, as_object(line.get("message"), f"{where}.message"), f"{where}.message", tell_unused=False
            )
    if not any(isinstance(line, dict) and one_of(line.get("type"), _SPOKEN) for line in row[KEY]):
        raise RowError("no_messages", KEY, "holds no messages", "write user and assistant events")
    return draft.finish()


def is_log_line(value: Any) -> bool:
    """Whether a row is one event of a session log."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return False
    return (isinstance(value.get("message"), dict) and bool(_LOG_KEYS & set(value))) or "leafUuid" in value


def by_session(rows: Iterable[AnyRow]) -> Iterator[AnyRow]:
    """Log lines that follow each other and belong to one session become one row; every other row passes as it is."""
    group: list[RawRow] = []
    session: Any = None
    for row in rows:
        event = _event(row)
        if event is None:
            yield from _session(group)
            group = []
            yield row
            continue
        named = event.value.get("sessionId")
        if group and named is not None and session is not None and named != session:
            yield from _session(group)
            group = []
        session = named if named is not None or not group else session
        group.append(event)
    yield from _session(group)


def _event(row: AnyRow) -> RawRow | None:
    """The row, read, where it is one event of a session log. For most rows the raw bytes suffice to rule this out."""
    if isinstance(row, UnreadRow) and not _may_be_event(row.raw):
        return None
    found = read_row(row)
    return found if isinstance(found, RawRow) and is_log_line(found.value) else None


def _may_be_event(raw: bytes) -> bool:
    """A key may be written with escapes."""
    return any(key in raw for key in _KEY_TEXTS) or _ESCAPED_LETTER.search(raw) is not None


def _session(group: list[RawRow]) -> Iterator[RawRow]:
    if group:
        raw = b"\n".join(row.raw for row in group)
        notices = tuple(notice for row in group for notice in row.notices)
        yield RawRow(group[0].source, raw, {KEY: [row.value for row in group]}, notices)
