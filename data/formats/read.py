"""Sources -> conversations, good and bad rows alike, in the order of the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice, repeat
from math import floor

from counterpoint.configs.data_section import ConversionSettings, SourceSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.formats.claude_code import by_session, is_log_line
from counterpoint.data.formats.convert import Converted, convert
from counterpoint.data.formats.mapped import with_mapping
from counterpoint.data.rows.containers import rows_from_line, unread_rows
from counterpoint.data.rows.row import AnyRow, BadRow, RawRow, UnreadRow, read


def read_conversations(
    sources: SourceSettings | str | Iterable[SourceSettings | str], options: ConversionSettings | None = None
) -> Iterator[Converted | BadRow]:
    """Every row of one source or of several: a conversation, a preference, or a bad row with its reason.

    A row comes as often as its source's weight sets, bad rows once: row k (from 0) of a source with weight w is
    taken `floor((k+1)w) - floor(kw)` times. Raises DataError where a source does not exist.
    """
    options = options or ConversionSettings()
    specs = [sources] if isinstance(sources, SourceSettings | str) else sources
    for row, format, times in weighted_rows(specs):
        yield from converted_rows(row, format, times, options)


def conversations_from(
    spec: SourceSettings, options: ConversionSettings, first: int
) -> Iterator[Converted | BadRow] | None:
    """Rows of one file from line `first` on, quickly; None where that takes reading all rows before it."""
    if spec.weight != 1 or spec.rows is not None:
        return None
    rows = rows_from_line(spec.path, first)
    if rows is None:
        return None
    head = list(islice(rows, 1))
    may_be_log = spec.format in ("auto", "claude_code")
    if may_be_log and head and isinstance(row := read(head[0]), RawRow) and is_log_line(row.value):
        return None  # the session may have begun before
    rows = chain(head, rows)
    whole = by_session(rows) if may_be_log else rows
    mapped = with_mapping(whole, spec)
    return chain.from_iterable(converted_rows(row, spec.format, 1, options) for row in mapped)


def weighted_rows(specs: Iterable[SourceSettings | str]) -> Iterator[tuple[AnyRow, str, int]]:
    """Rows as the files hold them, with the format of their source and how often each is taken."""
    for spec in specs:
        if isinstance(spec, str):
            spec = SourceSettings(path=spec)
        for k, row in enumerate(source_rows(spec)):
            yield row, spec.format, floor((k + 1) * spec.weight) - floor(k * spec.weight)


def converted_rows(row: AnyRow, format: str, times: int, options: ConversionSettings) -> Iterator[Converted | BadRow]:
    """A row's conversation `times` times, or the bad row once."""
    converted = row if isinstance(row, BadRow) else convert_row(row, format, options)
    return repeat(converted, 1 if isinstance(converted, BadRow) else times)


def source_rows(spec: SourceSettings) -> Iterator[AnyRow]:
    """The rows of one source, each once; events of a session log as one row. Raises DataError."""
    rows = unread_rows(spec.path)
    if spec.format in ("auto", "claude_code"):
        rows = by_session(rows)
    return with_mapping(islice(rows, spec.rows), spec)


def convert_row(row: RawRow | UnreadRow, format: str, options: ConversionSettings) -> Converted | BadRow:
    """The conversation of a row, with its source and the container's notices; or the reason why there is none."""
    found = read(row)
    if isinstance(found, BadRow):
        return found
    try:
        converted = convert(found.value, format, options)
    except RowError as error:
        return BadRow.of(found, error)
    if isinstance(converted, Preference):
        return replace(converted, prompt=_placed(converted.prompt, found))
    return _placed(converted, found)


def _placed(conversation: Conversation, row: RawRow) -> Conversation:
    return replace(conversation, source=row.source, notices=(*row.notices, *conversation.notices))
