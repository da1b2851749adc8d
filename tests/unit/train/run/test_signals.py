import signal
import time
from collections.abc import Iterator

import pytest

from counterpoint.train.run import signals as module
from counterpoint.train.run.signals import StopSignal


def test_sigterm_sent_twice_stops_once() -> None:
    """A launcher forwards what the group already got."""
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert stop.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """As at a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_a_second_ctrl_c_interrupts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: clock)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130
        clock += 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_without_a_signal_the_exit_code_is_zero() -> None:
    with StopSignal() as stop:
        pass
    assert stop.received is None
    assert stop.exit_code == 0
