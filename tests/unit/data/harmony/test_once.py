"""What is loaded once in a process, by whichever thread comes first."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from counterpoint.data.harmony.once import once


def test_threads_that_come_at_once_load_once_and_get_the_same() -> None:
    loads, together = [0], threading.Barrier(16)

    @once
    def table() -> list[int]:
        time.sleep(0.01)
        loads[0] += 1
        return [loads[0]]

    def asked(_: int) -> list[int]:
        together.wait()
        return table()

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(asked, range(16)))
    assert loads == [1]
    assert all(each is found[0] for each in found)


def test_what_could_not_be_loaded_is_tried_again() -> None:
    tries = [0]

    @once
    def table() -> int:
        tries[0] += 1
        if tries[0] == 1:
            raise OSError("not yet")
        return tries[0]

    with pytest.raises(OSError, match="not yet"):
        table()
    assert (table(), table()) == (2, 2)
