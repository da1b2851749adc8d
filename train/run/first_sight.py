"""Failures that are counted in the metrics, told on the terminal when the first of their kind is seen."""

from __future__ import annotations

from collections.abc import Callable


class FirstSight:
    """`tell` warns of each kind once, with its first cause."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self._known: set[str] = set()

    def tell(self, kind: str, count: int, of: int, where: str, cause: str = "") -> None:
        """`count` of `of` at `where` (`step 3`) were of this kind."""
        if count and kind not in self._known:
            self._known.add(kind)
            why = f", the first: {cause}" if cause else ""
            self.warn(f"{where}: {kind}: {count} of {of}{why} (told once; counts are in metrics.jsonl)")
