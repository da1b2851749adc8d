"""A file for each group of rollouts that has finished, until a checkpoint stands behind the step that learned from it.

A run that is killed at any moment goes on with them; what it had not finished is drawn again, from the same seeds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.train.loop.played import Played, facts_of, read_played, write_played


@dataclass(frozen=True)
class Journal:
    """Of one process of those that train together. run: what the entries of other settings or data are told by."""

    folder: Path
    process: int = 0
    processes: int = 1
    run: str = ""

    def path(self, number: int) -> Path:
        return self.folder / f"{self.processes}-{self.process}-{number}.npz"

    def write(self, number: int, version: int, adapter: str, played: Played) -> None:
        """version: that sampled it, adapter: the name which the server knew it by. Both are asked for again, and so are
        the rewards, by who reads the folder."""
        self.folder.mkdir(exist_ok=True)
        facts = {"group": number, "version": version, "adapter": adapter, "rewards": played.scores, "run": self.run}
        write_played(self.path(number), played, facts)

    def read(self, number: int) -> tuple[dict[str, Any], Played]:
        path = self.path(number)
        facts = facts_of(path)
        assert facts is not None, f"{path} was whole"
        return facts, read_played(path)

    def kept(self, taken: Collection[int], first: int, adapters: Collection[str]) -> list[int]:
        """The groups that a resumed run need not sample: not learned from yet, and sampled by a version whose adapter
        it has. All other entries are removed. taken: groups of at least `first` that were learned from. adapters: the
        names of the versions."""
        found = []
        for path in self.folder.glob("*.npz") if self.folder.is_dir() else ():
            whose, _, number = path.stem.rpartition("-")
            mine = whose == f"{self.processes}-{self.process}"
            if not mine and (self.process or whose.startswith(f"{self.processes}-")):
                continue
            facts = facts_of(path) if mine else None
            if (
                facts is None
                or facts["run"] != self.run
                or facts["adapter"] not in adapters
                or int(number) < first
                or int(number) in taken
            ):
                path.unlink(missing_ok=True)
            else:
                found.append(int(number))
        return sorted(found)

    def remove(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.path(number).unlink(missing_ok=True)
