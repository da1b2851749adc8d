"""What a container yields: a row that could be read, or one that could not."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Notice


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as the file holds it. source: "file:line"; raw: its bytes; value: its JSON; notices: of the container."""

    source: str
    raw: bytes
    value: Any
    notices: tuple[Notice, ...] = ()


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
        return f"{self.source}: {self.field}: {self.what}: {self.fix}"

    @classmethod
    def of(cls, row: RawRow, error: RowError) -> BadRow:
        return cls(row.source, error.kind, error.field, error.what, error.fix, row.raw)

    def quarantined(self) -> dict[str, str]:
        """The object that a quarantine file holds; bytes that are not UTF-8 go to `raw_base64`."""
        out = {"source": self.source, "kind": self.kind, "field": self.field, "what": self.what, "fix": self.fix}
        try:
            out["raw"] = self.raw.decode("utf-8")
        except UnicodeDecodeError:
            out["raw_base64"] = base64.b64encode(self.raw).decode("ascii")
        return out
