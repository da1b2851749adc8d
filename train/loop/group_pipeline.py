"""Rollouts that are sampled ahead of the steps that learn from them: what is in progress, and what a step is given."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from counterpoint.configs.errors import CounterpointError
from counterpoint.train.loop.group_journal import Journal
from counterpoint.train.loop.group_order import GroupOrder
from counterpoint.train.loop.group_player import Player
from counterpoint.train.loop.played import Played

ADAPTERS = "adapters"
"""Folder of a checkpoint with the older versions that groups in progress are sampled by."""
ADVISED = 1.5
"""Steps of training, in the time that 95 of 100 groups take, which leave the trainer idle for less than a tenth of its
time: of a simulation with log-normal times (benchmarks/async_rollouts.py)."""
Measured = tuple[float, float | None, list[int], list[float]]


class Versions(Protocol):
    """The engine that is given every version of the weights. Versions are counted in optimizer steps."""

    def version_name(self, version: int) -> str:
        """What servers know it by."""
        ...

    def adapter_folder(self, version: int) -> Path: ...

    def adopt(self, version: int, folder: Path) -> None:
        """Take a version back that a checkpoint has kept."""
        ...


@dataclass
class Pipeline:
    """The groups of one process, of those that train together.

    iterations: optimizer steps on the same rollouts. lead: whether this process has the engine's versions. gather,
    share: collective; what each process has, and what the leading one has. warn: told what happened meanwhile.
    measured: of the last step.
    """

    order: GroupOrder
    journal: Journal
    player: Player
    engine: Versions
    iterations: int = 1
    lead: bool = True
    gather: Callable[[list[Any]], list[Any]] = list
    share: Callable[[Any], Any] = lambda value: value
    warn: Callable[[str], None] = lambda _: None
    measured: dict[str, float] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    _adopted: list[int] = field(default_factory=list)
    _taken: list[int] = field(default_factory=list)
    _given: float | None = None

    def step(self, step: int) -> list[Played]:
        """What this optimizer step learns from, once the engine has its weights. Collective: an error of one process is
        raised in all."""
        found, measured, problem = [], None, None
        try:
            self._publish(step // self.iterations)
            found, measured = self._take()
        except CounterpointError as error:
            problem = error
        for error in self.gather([problem]):
            if error is not None:
                raise error
        self.measured = pipeline_metrics(self.gather([measured]))
        return found

    def _publish(self, version: int) -> None:
        """Begin with the groups that this version lets in."""
        order = self.order
        resumes = order.version < 0
        names = (
            {v: self.engine.version_name(v * self.iterations) for v in (*self._adopted, version)} if self.lead else {}
        )
        self._names |= self.share(names)
        self._adopted = []
        if resumes:
            order.finished.update(self.journal.kept(order.ahead, order.first, self._names.values()))
        for number in order.published(version):
            sampled_by = order.version_of(number)
            self.player.play(number, sampled_by * self.iterations, self._names[sampled_by])

    def _take(self) -> tuple[list[Played], Measured]:
        began = time.monotonic()
        busy = None if self._given is None else began - self._given
        while (numbers := self.order.take()) is None:
            self.order.finished.add(self.player.wait())
        while self.player.notices:
            self.warn(self.player.notices.pop(0))
        found = [self.journal.read(number) for number in numbers]
        self._taken += numbers
        ages = [self.order.version - facts["version"] // self.iterations for facts, _ in found]
        self._given = time.monotonic()
        seconds = [played.seconds for _, played in found]
        return [played for _, played in found], (self._given - began, busy, ages, seconds)

    # ---- checkpoints

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps, of all processes. Collective."""
        return self.gather([{"first": self.order.first, "ahead": sorted(self.order.ahead)}])

    def restore(self, states: Sequence[Mapping[str, Any]], process: int, processes: int, step: int) -> None:
        """Goes on after the first `step` optimizer steps. Where processes have changed, the numbers of groups do."""
        if len(states) == processes:
            self.order.resumed(states[process]["first"], states[process]["ahead"])
            return
        self.order.resumed(-(-step // self.iterations) * self.order.groups, [])
        if any(state["ahead"] for state in states):
            self.warn("rollout.order: window: other processes than before: some groups are learned from twice or never")

    def fill_checkpoint(self, folder: Path, step: int) -> None:
        """Link the adapters of the versions before this step's that groups may still be sampled by."""
        now = -(-step // self.iterations)
        for version in range(max(0, now - self.order.most_age), now) if self.lead else ():
            there = folder / ADAPTERS / str(version * self.iterations)
            there.mkdir(parents=True)
            for path in sorted(self.engine.adapter_folder(version * self.iterations).iterdir()):
                try:
                    os.link(path, there / path.name)
                except OSError:  # another file system, or one without links
                    shutil.copyfile(path, there / path.name)

    def adopt(self, folder: Path) -> None:
        """Take the adapters of a checkpoint back."""
        for path in sorted((folder / ADAPTERS).glob("*"), key=lambda path: int(path.name)) if self.lead else ():
            self.engine.adopt(int(path.name), path)
            self._adopted.append(int(path.name) // self.iterations)

    def saved(self) -> None:
        """A checkpoint stands: what was learned from before it is not needed any more."""
        self.journal.remove(self._taken)
        self._taken = []

    def close(self) -> None:
        self.player.close()


def pipeline_metrics(found: Sequence[Measured]) -> dict[str, float]:
    """Of a step, from every process: how long it waited, the seconds before that since it last had, how many steps
    before it the weights of each group were published, and how long each took."""
    ages = [age for _, _, each, _ in found for age in each]
    p95 = float(np.quantile([second for *_, each in found for second in each], 0.95))
    out = {
        "rollouts/idle": max(idle for idle, *_ in found),
        "rollouts/age/mean": sum(ages) / len(ages),
        "rollouts/age/max": float(max(ages)),
        "rollouts/group_seconds/p95": p95,
    }
    busy = [busy for _, busy, *_ in found if busy]
    if busy:
        out["rollouts/advised_staleness"] = float(math.ceil(ADVISED * p95 / max(busy)))
    return out
