"""What is loaded once in a process, also where several threads want it first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

T = TypeVar("T")


def once(load: Callable[[], T]) -> Callable[[], T]:
    """`load`, called once; `functools.lru_cache` calls it in every thread that comes before the first is done."""
    lock = threading.Lock()
    found: list[T] = []

    @wraps(load)
    def loaded() -> T:
        if not found:  # no lock afterwards: a process that is forked meanwhile would keep it
            with lock:
                if not found:
                    found.append(load())
        return found[0]

    return loaded
