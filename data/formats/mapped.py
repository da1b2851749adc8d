"""Rows of a source that says itself which column is what (`columns`) and who speaks under which name (`roles`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from counterpoint.configs.data_section import ConversionSettings, SourceSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.formats.chat import messages_key, read_chat
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_object
from counterpoint.data.formats.preference import read_sides
from counterpoint.data.formats.roles import Speaker
from counterpoint.data.formats.tables import read_table
from counterpoint.data.rows.row import AnyRow, RawRow, read

FORMAT = "columns"
_FIX = "correct the source's `columns`"


@dataclass(frozen=True, slots=True)
class Mapped:
    """A row's JSON value with what its source says about it."""

    value: Any
    columns: Mapping[str, str]
    roles: Mapping[str, Speaker]


def with_mapping(rows: Iterable[AnyRow], spec: SourceSettings) -> Iterator[AnyRow]:
    """The rows of a source; where it maps its columns or roles their values are `Mapped`."""
    if spec.columns is None and spec.roles is None:
        yield from rows
        return
    columns = spec.columns.model_dump(exclude_none=True) if spec.columns else {}
    named: dict[Any, tuple[str, ...]] = spec.roles.model_dump() if spec.roles else {}
    roles: dict[str, Any] = {name: speaker for speaker, names in named.items() for name in names}
    for row in rows:
        found = read(row)
        if isinstance(found, RawRow):
            found = replace(found, value=Mapped(found.value, columns, roles))
        yield found


def read_mapped(mapped: Mapped, options: ConversionSettings) -> Conversation | Preference:
    """The row as its source says it is. Raises RowError."""
    row, columns = as_object(mapped.value, "row"), mapped.columns

    def begin() -> Draft:
        draft = Draft(FORMAT, options)
        draft.roles = mapped.roles
        return draft

    for part, name in columns.items():
        if part in ("messages", "prompt", "answer", "calls", "chosen", "rejected") and name not in row:
            raise RowError("no_column", name, f"missing: `columns` names it as {part}", _FIX)
    if "chosen" in columns:
        return read_sides(row, begin, columns)
    if "prompt" in columns:
        return read_table(row, columns, begin())
    key = columns.get("messages") or messages_key(row)
    if key is None:
        what = "no list of messages for the source's `roles`"
        raise RowError("no_column", "row", what, "say which column it is: `columns: {messages: NAME}`")
    names = {columns[part]: part for part in ("role", "content") if part in columns}
    messages = row.get(key)
    if names and isinstance(messages, list):
        messages = [
            {names.get(name, name): value for name, value in turn.items()} if isinstance(turn, dict) else turn
            for turn in messages
        ]
    named = {part: name for part, name in columns.items() if part in ("system", "tools")}
    renamed = {name: value for name, value in row.items() if name not in named.values()}
    renamed |= {part: row.get(name) for part, name in named.items()}
    return read_chat({**renamed, key: messages}, begin(), key)
