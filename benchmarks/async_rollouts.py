"""How long a trainer waits for its rollouts, by staleness and order: the scheduler of `train/loop/group_order.py` with
simulated servers, of which two die and one joins.

    python benchmarks/async_rollouts.py [--step SECONDS ...] [--steps N] [--seed N ...] [--parallel N]

Discrete events, no clock: the seconds are simulated. A group is 8 rollouts, a rollout 4 actions with tools of 2 seconds
between them; an action takes a log-normal time with a mean of 10 seconds (sigma 1). 8 servers of 16 requests each;
servers 2 and 5 die after 0.2 and 0.4 of the steps, and what they were sampling is sampled again elsewhere; one joins
after 0.6. Times belong to the group, the rollout and the action, so that every schedule meets the same ones. Where all
servers are full, requests of the step that is due first go first, as in `train/sampling/pool.py`; `by arrival` beside
it.

`least` is what no scheduler can fall below: the same draws, with a free server for every request at once, none of which
dies. A step then waits for its longest rollouts alone, which begin when the weights that sample them are published.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
from dataclasses import dataclass, field

from counterpoint.train.loop.group_order import GroupOrder

GROUPS, GROUP, ACTIONS, TOOL, SERVERS, PARALLEL = 8, 8, 4, 2.0, 8, 16
Request = tuple[int, int, int]
"""(group, rollout, action)"""


@dataclass
class Fleet:
    """Servers, requests that wait, and what happens next. parallel: requests of a server. by_step: whether those of the
    step that is due first go first, rather than the earliest. now: simulated seconds."""

    seed: int
    parallel: float = PARALLEL
    by_step: bool = True
    now: float = 0.0
    events: list[tuple[float, int, str, tuple[int, ...]]] = field(default_factory=list)
    busy: dict[int, set[Request]] = field(default_factory=lambda: {n: set() for n in range(SERVERS)})
    where: dict[Request, tuple[int, int]] = field(default_factory=dict)
    waiting: list[tuple[int, int, Request]] = field(default_factory=list)
    places: dict[Request, tuple[int, int]] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    began: dict[int, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    count: itertools.count[int] = field(default_factory=itertools.count)

    def at(self, when: float, what: str, *about: int) -> None:
        heapq.heappush(self.events, (when, next(self.count), what, about))

    def begin(self, group: int) -> None:
        self.left[group], self.began[group] = GROUP, self.now
        for rollout in range(GROUP):
            self.ask((group, rollout, 0))

    def ask(self, request: Request) -> None:
        """Whose server has died keeps its place."""
        turn = request[0] // GROUPS if self.by_step else 0
        place = self.places.setdefault(request, (turn, next(self.count)))
        heapq.heappush(self.waiting, (*place, request))
        self.assign()

    def assign(self) -> None:
        while self.waiting:
            server = min(self.busy, key=lambda n: len(self.busy[n]))
            if len(self.busy[server]) >= self.parallel:
                return
            *_, request = heapq.heappop(self.waiting)
            attempt = next(self.count)
            self.busy[server].add(request)
            self.where[request] = server, attempt
            draw = random.Random(repr((self.seed, request)))
            self.at(self.now + draw.lognormvariate(math.log(10) - 0.5, 1.0), "sampled", *request, attempt)

    def next(self, until: float) -> int | None:
        """Goes on to the next event before `until`: the group that has finished by it, else -1; None for no event."""
        if not self.events or self.events[0][0] > until:
            self.now = until
            return None
        self.now, _, what, about = heapq.heappop(self.events)
        if what == "dies":
            for request in sorted(self.busy.pop(about[0])):
                del self.where[request]
                self.ask(request)
        elif what == "joins":
            self.busy[about[0]] = set()
            self.assign()
        elif what == "tool":
            self.ask((about[0], about[1], about[2]))
        else:
            return self.sampled((about[0], about[1], about[2]), about[3])
        return -1

    def sampled(self, request: Request, attempt: int) -> int:
        server, current = self.where.get(request, (-1, -1))
        if current != attempt:
            return -1  # of a server that has died since
        del self.where[request]
        self.busy[server].discard(request)
        self.assign()
        group, rollout, action = request
        if action + 1 < ACTIONS:
            self.at(self.now + TOOL, "tool", group, rollout, action + 1)
            return -1
        self.left[group] -= 1
        if self.left[group]:
            return -1
        self.seconds.append(self.now - self.began[group])
        return group


def simulated(
    order: GroupOrder, steps: int, step: float, fleet: Fleet, disturbed: bool = True
) -> tuple[float, float, float, list[list[int]]]:
    """(share of the time that the trainer waits, mean and largest age, the groups of each step)."""
    idle, ages, batches = 0.0, list[int](), list[list[int]]()
    whole = steps * step
    for when, what, server in ((0.2, "dies", 2), (0.4, "dies", 5), (0.6, "joins", SERVERS)) if disturbed else ():
        fleet.at(when * whole, what, server)
    for version in range(steps):
        for group in order.published(version):
            fleet.begin(group)
        began = fleet.now
        while (batch := order.take()) is None:
            group = fleet.next(math.inf)
            assert group is not None
            if group >= 0:
                order.finished.add(group)
        idle += fleet.now - began
        ages += [version - order.version_of(group) for group in batch]
        batches.append(batch)
        until = fleet.now + step
        while (group := fleet.next(until)) is not None:
            if group >= 0:
                order.finished.add(group)
    return idle / fleet.now, sum(ages) / len(ages), max(ages), batches


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a trainer waits for its rollouts.")
    parser.add_argument(
        "--step", type=float, nargs="+", default=[40.0, 80.0, 160.0], help="seconds of a step's training"
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--parallel", type=int, default=PARALLEL, help="requests that a server takes at a time")
    args = parser.parse_args()
    last = args.steps * GROUPS
    for seed in args.seed:
        fleet = Fleet(seed, args.parallel)
        for group in range(64):
            fleet.begin(group)
            while group not in [fleet.next(math.inf)]:
                pass
        times = sorted(fleet.seconds)
        print(f"seed {seed}: of groups alone half take {times[32]:.0f} s, 95 of 100 {times[60]:.0f} s")
        print(f"{'step':>6}  {'order':8} staleness    idle  by arrival   least  age mean, max")
        for step in args.step:
            for windowed, staleness in (*((False, n) for n in range(5)), (True, 2), (True, 4)):
                make = GroupOrder.windowed if windowed else GroupOrder
                order = make(GROUPS, last, staleness)
                idle, mean, oldest, batches = simulated(order, args.steps, step, Fleet(seed, args.parallel))
                assert sorted(group for batch in batches for group in batch) == list(range(last)), "each once"
                assert oldest <= order.most_age
                assert windowed or batches == [list(range(n, n + GROUPS)) for n in range(0, last, GROUPS)]
                arrival, *_ = simulated(
                    make(GROUPS, last, staleness), args.steps, step, Fleet(seed, args.parallel, by_step=False)
                )
                least, *_ = simulated(make(GROUPS, last, staleness), args.steps, step, Fleet(seed, math.inf), False)
                assert least <= min(idle, arrival) + 1e-9
                name = "window" if windowed else "strict"
                print(
                    f"{step:6.0f}  {name:8} {staleness:9}  {100 * idle:4.1f} %      {100 * arrival:4.1f} %  "
                    f"{100 * least:4.1f} %  {mean:.1f}, {oldest}"
                )


if __name__ == "__main__":
    main()
