"""Where groups of rollouts are played, in threads; what each has come to is in the journal before it counts."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from counterpoint.train.episodes.sampling_desk import MOST_THREADS
from counterpoint.train.loop.group_journal import Journal
from counterpoint.train.loop.group_order import Share
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.sample import SamplingStoppedError

EngineAt = Callable[[int, str, int], Engine]
"""Version of the weights, its name, and the step that is to learn from the samples -> the engine that samples from it.
Thread-safe, as the engine is."""
Done = Callable[[int, BaseException | None], None]
"""Called with the number of a group once it is in the journal, or with what ends the run."""


class Player(Protocol):
    """notices: what a user should know that has happened meanwhile."""

    notices: list[str]

    def play(self, number: int, version: int, name: str) -> None:
        """Begin with a group, to be sampled by this version."""
        ...

    def wait(self) -> int:
        """The number of a group that has finished since; raises what ends the run."""
        ...

    def close(self) -> None:
        """End what is in progress."""
        ...


class ThreadPlayer:
    """A `Player` in this process. done: takes the place of `wait`."""

    def __init__(
        self, rollouts: Rollouts, share: Share, journal: Journal, engine_at: EngineAt, done: Done | None = None
    ) -> None:
        self.notices: list[str] = []
        self._rollouts, self._share, self._journal, self._engine_at = rollouts, share, journal, engine_at
        self._finished: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
        self._done: Done = done or (lambda number, error: self._finished.put((number, error)))
        self._pool = ThreadPoolExecutor(max(1, MOST_THREADS // share.unit), "group")
        self._closed = False

    def play(self, number: int, version: int, name: str) -> None:
        self._pool.submit(self._play, number, version, name)

    def wait(self) -> int:
        number, error = self._finished.get()
        if error is not None:
            raise error
        return number

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _play(self, number: int, version: int, name: str) -> None:
        try:
            items, first, step, epoch = self._share.of(number)
            engine = self._engine_at(version, name, step)
            played = self._rollouts.play(items, first, step, epoch, engine, lambda: self._closed)
            self._journal.write(number, version, name, played)
        except SamplingStoppedError:
            return
        except BaseException as error:
            if not self._closed:
                self._done(number, error)
            return
        self._done(number, None)
