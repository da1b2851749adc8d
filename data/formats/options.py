"""One source of rows, as the readers take it."""

from __future__ import annotations

from dataclasses import dataclass


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
