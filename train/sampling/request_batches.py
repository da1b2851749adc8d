"""Requests that come one by one, sampled in batches by one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.sample import Sampled

WAIT = 0.02
"""Seconds that a batch waits for more requests: those of one evaluation come at once, or one after the other."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt with its limits; `future` gets the completion, or the engine's error.

    engine: what samples it, instead of that of all; those of one batch are equal.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float
    seed: int
    stop_ids: tuple[int, ...] = STOP_IDS
    engine: Engine | None = None
    future: Future[Sampled] = field(default_factory=Future)

    @property
    def limits(self) -> tuple[int, float, tuple[int, ...], Engine | None]:
        return self.max_new_tokens, self.temperature, self.stop_ids, self.engine


class Batches:
    """Samples the requests that it is given, at most `size` at a time, as long as the program lives."""

    def __init__(self, engine: Engine, size: int) -> None:
        self.engine, self.size = engine, size
        self._waiting: queue.Queue[Request | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="counterpoint-sampling", daemon=True)
        self._thread.start()

    def put(self, request: Request) -> Future[Sampled]:
        self._waiting.put(request)
        return request.future

    def close(self) -> None:
        self._waiting.put(None)

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            ended = False
            while len(batch) < self.size and not ended:
                try:
                    request = self._waiting.get(timeout=WAIT)
                except queue.Empty:
                    break
                if request is None:
                    ended = True
                else:
                    batch.append(request)
            limits: list[object] = []
            for request in batch:
                if request.limits not in limits:
                    limits.append(request.limits)
            for each in limits:
                self._sample([request for request in batch if request.limits == each])
            if ended:
                return

    def _sample(self, requests: list[Request]) -> None:
        requests = [request for request in requests if request.future.set_running_or_notify_cancel()]
        if not requests:
            return
        try:
            found = (requests[0].engine or self.engine).sample(
                [request.prompt for request in requests],
                requests[0].max_new_tokens,
                requests[0].temperature,
                [request.seed for request in requests],
                requests[0].stop_ids,
            )
        except BaseException as error:
            for request in requests:
                request.future.set_exception(error)
            return
        for request, sampled in zip(requests, found, strict=True):
            request.future.set_result(sampled)
