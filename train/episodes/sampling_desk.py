"""Where many rollouts, each in a thread of its own, wait for what one engine samples.

A model in this process samples in batches, in the thread that calls `run`, since torch's number of threads and its
modes belong to a thread, and signals to the main one. An engine whose `each_alone` is true (a server) is asked by each
rollout itself, at once: a slow sample holds up no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.sample import Sampled, Sampler, SamplingStoppedError

GATHER_SECONDS = 0.1
"""How long after the last change a batch waits for rollouts that are in a tool: those of short calls are sampled
together, and those of long ones hold up no other."""
STOP_SECONDS = 0.2
"""How often it is asked whether a signal came, while no rollout waits for a sample."""
MOST_THREADS = 256
"""Rollouts in progress at a time: each may have a process of its own."""


class AbandonedError(Exception):
    """The engine failed, or its caller wants to stop."""


@dataclass
class _Asked:
    place: int
    ids: list[int]
    tokens: int
    seed: int
    answer: Future[Sampled] = field(default_factory=Future)


class SamplingDesk:
    """Answers what rollouts ask for. A sample depends on its own prompt, limit and seed, not on its batch.

    stops: SamplingStoppedError from `run` once it is true; of a `Sampler` it is asked after every token.
    """

    def __init__(self, engine: Engine, temperature: float, stops: Callable[[], bool] | None = None) -> None:
        if stops is not None and isinstance(engine, Sampler):
            engine = replace(engine, stops=stops)
        self._engine, self._temperature, self._stops = engine, temperature, stops
        self._each_alone = bool(getattr(engine, "each_alone", False))
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._waiting: list[_Asked] = []
        self._left = 0
        self._ended = False

    def run(
        self,
        rollouts: Sequence[Callable[[], None]],
        after: Callable[[int], None],
        abort: Callable[[], object] = lambda: None,
    ) -> None:
        """Each rollout in a thread, and `after(its number)` in the same one once nothing of it waits for the engine any
        more. Returns when all are done; raises what the engine or one of them raised, once the others have ended, which
        `abort` makes their calls do."""
        self._left = len(rollouts)

        def played(place: int) -> None:
            try:
                rollouts[place]()
            finally:
                with self._changed:
                    self._left -= 1
                    self._changed.notify_all()
            after(place)

        with ThreadPoolExecutor(min(MOST_THREADS, max(1, len(rollouts))), "rollout") as pool:
            futures = [pool.submit(played, place) for place in range(len(rollouts))]
            try:
                self._serve()
                while wait(futures, self._pause).not_done:
                    self._go_on()
            except BaseException:
                self._abandon()
                abort()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for future in futures:
            future.result()

    def sample(self, place: int, ids: list[int], tokens: int, seed: int) -> Sampled:
        """Called by a rollout: blocks until its sample of at most `tokens` is there. AbandonedError where none will
        be."""
        if self._each_alone:
            return self._alone(ids, tokens, seed)
        asked = _Asked(place, ids, tokens, seed)
        with self._changed:
            if self._ended:
                raise AbandonedError
            self._waiting.append(asked)
            self._changed.notify_all()
        return asked.answer.result()

    def _alone(self, ids: list[int], tokens: int, seed: int) -> Sampled:
        if self._ended:
            raise AbandonedError
        try:
            return self._engine.sample([ids], tokens, self._temperature, [seed])[0]
        except BaseException as error:
            with self._changed:  # raised by `run`: who asks may be a thread of an endpoint, which would only answer it
                self._failure = self._failure or error
                self._changed.notify_all()
            raise AbandonedError from error

    @property
    def ended(self) -> bool:
        """Whether no sample will come any more."""
        return self._ended

    @property
    def _pause(self) -> float | None:
        return None if self._stops is None else STOP_SECONDS

    def _go_on(self) -> None:
        if self._stops is not None and self._stops():
            raise SamplingStoppedError

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._failure is not None:
                        raise self._failure
                    if self._left == 0:
                        return
                    self._changed.wait(self._pause)
                    self._go_on()
                while len(self._waiting) < min(self._left, MOST_THREADS) and self._changed.wait(GATHER_SECONDS):
                    pass
                batch, self._waiting = sorted(self._waiting, key=lambda asked: asked.place), []
            try:
                found = self._engine.sample(
                    [asked.ids for asked in batch],
                    max(asked.tokens for asked in batch),
                    self._temperature,
                    [asked.seed for asked in batch],
                )
                self._go_on()
            except BaseException:
                for asked in batch:
                    asked.answer.set_exception(AbandonedError())
                raise
            for asked, sampled in zip(batch, found, strict=True):
                asked.answer.set_result(sampled)

    def _abandon(self) -> None:
        with self._changed:
            self._ended = True
            waiting, self._waiting = self._waiting, []
        for asked in waiting:
            asked.answer.set_exception(AbandonedError())
