"""A lock that the lowest of those that wait for it gets next."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PriorityLock:
    """Not reentrant. Who leaves it wakes one of those that wait, not all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = False
        self._waiting: list[tuple[tuple[int, ...], threading.Event]] = []

    @contextmanager
    def held(self, place: tuple[int, ...]) -> Iterator[None]:
        """place: no two that wait at a time have the same one."""
        mine = threading.Event()
        with self._lock:
            if self._held:
                heapq.heappush(self._waiting, (place, mine))
            else:
                self._held = True
                mine.set()
        try:
            mine.wait()
        except BaseException:  # an interrupt
            with self._lock:
                if mine.is_set():
                    self._pass_on()
                else:
                    self._waiting.remove((place, mine))
                    heapq.heapify(self._waiting)
            raise
        try:
            yield
        finally:
            with self._lock:
                self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            heapq.heappop(self._waiting)[1].set()
        else:
            self._held = False
