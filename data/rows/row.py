"""What a container yields: a row that is not read as JSON yet, one that is, or one that cannot be."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Notice
from counterpoint.data.rows.strict_json import loads


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as the file holds it. source: "file:line"; raw: its bytes; value: its JSON; notices: of the container."""

    source: str
    raw: bytes
    value: Any
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class UnreadRow:
    """The bytes of a row, to be read as JSON by whoever needs the value: bytes are cheap to send to another process."""

    source: str
    raw: bytes
    notices: tuple[Notice, ...] = ()

    def read(self) -> RawRow | BadRow:
        try:
            return RawRow(self.source, self.raw, loads(self.raw), self.notices)
        except RowError as error:
            return BadRow(self.source, error.kind, error.field, error.what, error.fix, self.raw)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why. kind: stable word for counts; field: path in the row; raw: original bytes."""

    source: str
    kind: str
    field: str
    what: str
    fix: str
    raw: bytes = b""

    @property
    def message(self) -> str:
        """`file:line: field: what is wrong: what to do`, on one line."""
        return one_line(f"{self.source}: {self.field}: {self.what}: {self.fix}")

    @classmethod
    def of(cls, row: RawRow | UnreadRow, error: RowError) -> BadRow:
        return cls(row.source, error.kind, error.field, error.what, error.fix, row.raw)

    def quarantined(self) -> dict[str, str]:
        """The object that a quarantine file holds; bytes that are not UTF-8 go to `raw_base64`."""
        fields = {"source": self.source, "kind": self.kind, "field": self.field, "what": self.what, "fix": self.fix}
        out = {key: text.encode("utf-8", "backslashreplace").decode() for key, text in fields.items()}
        try:
            out["raw"] = self.raw.decode("utf-8")
        except UnicodeDecodeError:
            out["raw_base64"] = base64.b64encode(self.raw).decode("ascii")
        return out


AnyRow = UnreadRow | RawRow | BadRow


def read(row: AnyRow) -> RawRow | BadRow:
    """The row with its value, or why it has none."""
    return row.read() if isinstance(row, UnreadRow) else row


def one_line(text: str) -> str:
    """A text for a terminal: nothing in it breaks the line, moves the cursor or turns the direction of writing."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
