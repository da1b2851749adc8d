"""Which group of rollouts is sampled when, by which version of the weights, and learned from in which step.

Groups are numbered, and a group's number alone says what it samples and by which version: that of the step it is due
in, or `staleness` steps earlier. Time decides when a sample is there, never what it is. Each process has numbers of its
own, of the groups in its share of every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from counterpoint.train.loop.step_order import StepOrder

WINDOW = 0.3
"""Of the groups that may be in progress, the share of the oldest ones that may go in any order."""


@dataclass(frozen=True)
class Share:
    """A process' rollouts of every step, in units that are played together: a group, or all of them.

    group: rollouts of a group. process: of `processes`. iterations: optimizer steps that a batch of rollouts is learned
    from in. whole: all of a step are one unit, since a reward compares all of them.
    """

    order: StepOrder
    group: int
    process: int = 0
    processes: int = 1
    iterations: int = 1
    whole: bool = False

    @property
    def rollouts(self) -> int:
        """Of a step."""
        return self.order.groups * self.group // self.processes

    @property
    def unit(self) -> int:
        """Rollouts of a unit. Where processes share a group, what each has of it is no group to play by itself."""
        return self.rollouts if self.whole or self.rollouts % self.group else self.group

    @property
    def units(self) -> int:
        """Of a step."""
        return self.rollouts // self.unit

    def of(self, number: int) -> tuple[list[int], int, int, int]:
        """(items of the rollouts, index of the first one over all processes, optimizer step, epoch) of a unit."""
        step, place = divmod(number, self.units)
        items, epoch = self.order.of(step)
        first = self.process * self.rollouts + place * self.unit
        return [items[n // self.group] for n in range(first, first + self.unit)], first, step * self.iterations, epoch


@dataclass
class GroupOrder:
    """`groups` of a step; no more than `last` in all. window: of how many of the oldest groups any finished one may go,
    1 for the order of their numbers.

    version: the newest that is published, counted in steps of rollouts; -1 before the first. first, ahead: all groups
    below `first` and those of `ahead` have been taken.
    """

    groups: int
    last: int
    staleness: int = 0
    window: int = 1
    version: int = -1
    first: int = 0
    ahead: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    _admitted: int = 0
    _chosen: list[int] = field(default_factory=list)

    @classmethod
    def windowed(cls, groups: int, last: int, staleness: int) -> GroupOrder:
        return cls(groups, last, staleness, max(1, int(WINDOW * (staleness + 1) * groups)))

    @property
    def most_age(self) -> int:
        """The most steps between a group's version and the step that learns from it: at most `window` - 1 groups
        overtake one."""
        return ((self.staleness + 1) * self.groups + self.window - 2) // self.groups

    @property
    def oldest_version(self) -> int:
        """That a group which is not taken yet is sampled by."""
        return self.version_of(self.first)

    def version_of(self, number: int) -> int:
        return max(0, number // self.groups - self.staleness)

    def resumed(self, first: int, ahead: Sequence[int]) -> None:
        """Goes on behind what was taken. Called before anything is published."""
        self.first, self.ahead, self._admitted = first, set(ahead), 0

    def published(self, version: int) -> list[int]:
        """The groups that may be sampled from now on."""
        self.version = version
        until = min(self.last, (version + self.staleness + 1) * self.groups)
        new = [n for n in range(max(self._admitted, self.first), until) if n not in self.ahead | self.finished]
        self._admitted = max(self._admitted, until)
        return new

    def take(self) -> list[int] | None:
        """The groups of the next step, in the order of their numbers, once they have finished; until then None."""
        while len(self._chosen) < self.groups:
            near = (n for n in range(self.first, self.first + self.window) if n in self.finished)
            if (number := next(near, None)) is None:
                return None
            self.finished.discard(number)
            self._chosen.append(number)
            self.ahead.add(number)
            while self.first in self.ahead:
                self.ahead.discard(self.first)
                self.first += 1
        taken, self._chosen = sorted(self._chosen), []
        return taken
