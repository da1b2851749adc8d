"""A server of those that sample as one engine, and the file that names them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from counterpoint.configs.redact import redact
from counterpoint.train.sampling.server import Server


@dataclass(eq=False)
class Member:
    """A server of the pool. model: its name for its own model. counts: whether it is asked. registered: adapters that
    were loaded there. proven: the newest that was seen to act. given: those that it was asked to load and may still
    have. base_scores: of fixed texts, without an adapter."""

    server: Server
    model: str = ""
    counts: bool = False
    was_in: bool = False
    listed: bool = True
    in_progress: int = 0
    registered: set[str] = field(default_factory=set)
    given: set[str] = field(default_factory=set)
    proven: str = ""
    base_scores: list[list[float | None]] | None = None
    woken: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return redact(self.server.url)


def listed_in(path: Path) -> list[str]:
    """The addresses in a file, one a line; blank lines and comments (#) are left out. OSError where it is gone."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys(filter(None, lines)))
