"""Who waits with the lowest place is next, and one that is interrupted leaves the lock to the others."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from counterpoint.train.sampling.priority_lock import PriorityLock


@pytest.mark.parametrize("when", ["waiting", "woken"])
def test_an_interrupted_waiter_does_not_keep_it(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, order = PriorityLock(), []
    first = lock.held((0,))
    first.__enter__()

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if when == "woken":
                first.__exit__(None, None, None)
            raise KeyboardInterrupt

    def waiter(place: int) -> None:
        with lock.held((place,)):
            order.append(place)

    later = [threading.Thread(target=waiter, args=(place,), daemon=True) for place in (3, 2)]
    for thread in later:
        thread.start()
    while len(lock._waiting) < 2:
        pass
    with monkeypatch.context() as patched:
        event: Any = Interrupted
        patched.setattr(threading, "Event", event)
        with pytest.raises(KeyboardInterrupt), lock.held((1,)):
            pass
    if when == "waiting":
        first.__exit__(None, None, None)
    for thread in later:
        thread.join(20)
    assert order == [2, 3]
    assert not lock._held
