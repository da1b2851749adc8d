"""SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C end a run after the step in progress, with a checkpoint.

Launchers and schedulers often send a signal twice (to the process and to its group), so repeating it changes nothing.
A terminal that is lost sends SIGHUP as well: that ends no run.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# One key press can arrive twice, from the terminal and from a launcher.
SAME_PRESS_SECONDS = 1.0


class StopSignal:
    """While entered, remembers the first of the signals; a later Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}
        self._at_terminal = False

    def __enter__(self) -> StopSignal:
        self._at_terminal = has_terminal()
        # Python delivers signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            # `nohup` has SIGHUP ignored, and means it.
            wanted = [n for n in CAUGHT if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._remember) for number in wanted}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    @property
    def exit_code(self) -> int:
        """143 for SIGTERM, 130 for Ctrl-C, as a shell would return; 0 without a signal."""
        return 128 + self.received if self.received is not None else 0

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._at_terminal and not has_terminal():
            return
        if self.received is None:
            self.received, self._at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at > SAME_PRESS_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
