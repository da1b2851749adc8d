"""Rollouts that another project's package drives: it asks an endpoint, which samples from the model and records ids."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Self

from counterpoint.configs.environment_section import UserSettings
from counterpoint.configs.errors import ConfigError
from counterpoint.configs.foreign_section import ForeignType, PackageSettings
from counterpoint.data.conversation import Effort
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.endpoint.ledger import Ledger, notice_of
from counterpoint.train.endpoint.requests import Asked
from counterpoint.train.endpoint.server import ChatServer
from counterpoint.train.episodes.episodes import EpisodeLimits, World
from counterpoint.train.episodes.sampling_desk import AbandonedError, SamplingDesk
from counterpoint.train.episodes.tools import InvalidRolloutError
from counterpoint.train.episodes.user_model import user_key
from counterpoint.train.foreign.bridge import Bridge, PackageFailedError, Played
from counterpoint.train.foreign.episode import episode_of, invalid_episode
from counterpoint.train.sampling.rollout import Episode
from counterpoint.train.sampling.sample import Sampled, sample_seed

MODEL = "counterpoint"
_LOOK = 0.2
"""Seconds between two looks at whether the run wants to stop, or a package takes too long."""


class ForeignEnvironments:
    """A package of a run file, loaded in its processes, and the endpoint that they ask. ConfigError where it cannot be
    loaded. Close it, or use it as a context manager."""

    def __init__(self, kind: ForeignType, settings: PackageSettings, user: UserSettings | None = None) -> None:
        self.kind: ForeignType = kind
        self.settings, self.user = settings, user
        self.counts: Counter[str] = Counter()
        self._ledgers: dict[str, Ledger] = {}
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._numbers = itertools.count(1)
        self.server = ChatServer(self._found, MODEL)
        self._bridges: list[Bridge | None] = [None] * settings.workers
        self._old: list[Bridge] = []
        self._next = itertools.cycle(range(settings.workers))
        try:
            self.ready = self._bridge().ready
        except BaseException:
            self.close()
            raise

    def player(
        self, renderer: Renderer, limits: EpisodeLimits, effort: Effort, seed: int, world: World, place: int
    ) -> ForeignRollout:
        return ForeignRollout(self, renderer, limits, effort, seed, world, place)

    def weigh(self, earned: Mapping[str, float]) -> float:
        """The reward, which has no name, and those metrics that are given a weight."""
        weights = {"": 1.0, **self.settings.weights}
        return sum(value * weights.get(name, 0.0) for name, value in earned.items())

    def told(self) -> list[str]:
        """What of the package's requests had no effect, or split a rollout, a line each."""
        who, of = f"{self.kind} `{self.settings.id}`", self.counts["requests"]
        told = [(notice_of(name), count) for name, count in sorted(self.counts.items())]
        return [f"{who}: {notice}: {count} of {of} requests" for notice, count in told if notice]

    def close(self) -> None:
        for bridge in (*self._bridges, *self._old):
            if bridge is not None:
                bridge.close()
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found(self, rollout: str | None) -> Ledger | None:
        return self._ledgers.get(rollout or "")

    def _bridge(self) -> Bridge:
        """The next process, started where it has not been, has died, or hung."""
        with self._lock:
            place = next(self._next)
            bridge = self._bridges[place]
            if bridge is None or bridge.gone or bridge.retired:
                if bridge is not None:
                    self._old.append(bridge)
                bridge = self._bridges[place] = Bridge(self.kind, self.settings, self.server.key)
            for old in [old for old in self._old if not old.busy]:
                self._old.remove(old)
                old.close()
            return bridge


@dataclass
class ForeignRollout:
    """One rollout, which plays in the package; as a `Player` of `run_episodes`."""

    owner: ForeignEnvironments
    renderer: Renderer
    limits: EpisodeLimits
    effort: Effort
    seed: int
    world: World
    place: int
    played: Played | None = None
    invalid: str | None = None
    ledger: Ledger | None = None
    _waits: int = 0
    _since: float = 0.0
    _names: list[str] = field(default_factory=list)

    def play(self, desk: SamplingDesk) -> None:
        """Until the package says that it is over. What it breaks makes the rollout invalid."""
        try:
            self.played = self._run(desk)
        except PackageFailedError as error:
            # What the model broke is no fault of the package: it earns nothing there, and the rollout counts.
            if self.ledger is not None and self.ledger.calls and self.ledger.calls[-1].is_broken:
                self.played = Played(0.0)
                self.ledger.counts["broken"] += 1
            else:
                self._is_invalid(error)
        except InvalidRolloutError as error:
            self._is_invalid(error)
        finally:
            for name in self._names:
                self.owner._ledgers.pop(name, None)

    def closed(self) -> Episode:
        calls = list(self.ledger.calls) if self.ledger is not None else []
        if self.played is not None and self.played.sessions is not None:
            calls = [call for call in calls if call.session in self.played.sessions]
        if self.ledger is not None:
            self.owner.counts.update(self.ledger.counts)
            self.invalid = self.ledger.failed or self.invalid
        if self.invalid is None and not calls:
            self.invalid = f"{self.owner.kind} `{self.owner.settings.id}`: the package asked the model for nothing"
        if self.invalid is not None or self.played is None:
            return invalid_episode(calls, self.renderer, self.effort, self.seed, self.invalid or "it was not played")
        earned = {} if self.played.reward is None else {"": self.played.reward}
        counts = self.ledger.counts if self.ledger is not None else {}
        return episode_of(calls, self.effort, self.seed, {**earned, **self.played.metrics}, counts)

    def abort(self) -> None:
        """Nothing: the bridge sees that the desk has ended."""

    def release(self) -> None: ...

    def _run(self, desk: SamplingDesk) -> Played:
        owner, number = self.owner, next(self.owner._numbers)
        name = f"{number}-{self.world.facts.sample}"
        try:
            bridge = owner._bridge()
        except ConfigError as error:
            raise InvalidRolloutError(str(error)) from None
        self.ledger = self._registered(name, desk, self.seed)
        url, key = owner.server.url(name), owner.server.key
        if owner.user is None:
            self._registered(f"{name}-user", desk, sample_seed(self.seed, "user"))
            user = {"base_url": owner.server.url(f"{name}-user"), "api_key": key, "model": MODEL}
        else:
            user = {"base_url": owner.user.url, "api_key": user_key(), "model": owner.user.model}
        self._since = time.monotonic()
        answer = bridge.play(
            {
                "rollout": name,
                "task": dict(self.world.row),
                "seed": self.world.facts.seed % 2**31,
                "base_url": url,
                "api_key": key,
                "model": MODEL,
                "user": user,
            }
        )
        try:
            while True:
                try:
                    return answer.result(_LOOK)
                except FutureTimeoutError:
                    if desk.ended:
                        raise AbandonedError from None
                    self._check(bridge)
        finally:
            bridge.drop(name)

    def _check(self, bridge: Bridge) -> None:
        limit = self.owner.settings.seconds
        if not self._waits and time.monotonic() - self._since > limit:
            # A thread of another program cannot be interrupted: the process takes no more, and ends with its last one.
            bridge.retired = True
            raise InvalidRolloutError(f"{bridge.name}: no request and no reward within {limit:g} s", bridge.tail())

    def _registered(self, name: str, desk: SamplingDesk, seed: int) -> Ledger:
        def sample(ids: list[int], tokens: int, asked: Asked, seed: int) -> Sampled:
            with self.owner._lock:
                self._waits += 1
            try:
                return desk.sample(self.place, ids, tokens, seed)
            finally:
                with self.owner._lock:
                    self._waits -= 1
                    self._since = time.monotonic()

        most = self.owner.settings.requests
        ledger = Ledger(self.renderer, sample, self.effort, self.limits, seed, most=most, lock=self.owner._writing)
        self.owner._ledgers[name] = ledger
        self._names.append(name)
        return ledger

    def _is_invalid(self, error: InvalidRolloutError) -> None:
        self.invalid = "\n".join(filter(None, (str(error), error.trace.rstrip())))
