from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.train_section import TrackingSettings
from counterpoint.train.run import tracking
from counterpoint.train.run.tracking import NoTracker, start_tracker

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


class FakeRun:
    def __init__(self, log: Any = None) -> None:
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.finished = False
        self._log = log

    def log(self, values: dict[str, Any], step: int) -> None:
        if self._log is not None:
            self._log(len(self.logged))
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    until = time.monotonic() + 300  # a tracker's thread may outlive its tracker by a moment
    while (left := [name for name in os.environ if name.startswith("WANDB_")]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


def use(monkeypatch: pytest.MonkeyPatch, run: Any) -> threading.Event:
    """Gives trackers `run` in place of wandb's. The event says that one took it: a tracker's thread that is slow to
    start would otherwise find the real wandb after the test."""
    taken = threading.Event()

    def start(*args: Any) -> Any:
        taken.set()
        if isinstance(run, BaseException):
            raise run
        return run

    monkeypatch.setattr(tracking, "_start_wandb", start)
    return taken


def test_off_is_off(tmp_path: Path, warned: list[str]) -> None:
    tracker = start_tracker(TrackingSettings(wandb="off"), tmp_path, {}, warned.append)
    assert isinstance(tracker, NoTracker)
    tracker.scalars(1, {"loss": 1.0})
    tracker.table(1, "samples", ["a"], [["b"]])
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_numbers_and_tables_arrive_in_order(tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    use(monkeypatch, run)
    tracker = start_tracker(TrackingSettings(), tmp_path, {}, warned.append)
    values = {"loss": 1.0}
    tracker.scalars(1, values)
    values["loss"] = 2.0
    tracker.scalars(2, values)
    tracker.table(2, "samples", ["prompt", "text"], [["a", f"with {SECRET}"]])
    tracker.close()
    assert run.logged[:2] == [({"loss": 1.0}, 1), ({"loss": 2.0}, 2)]
    table = run.logged[2][0]["samples"]
    assert table.columns == ["prompt", "text"]
    assert table.data == [["a", "with [hidden]"]]
    assert run.finished
    assert warned == []


def fail(at: int, error: BaseException) -> Any:
    def log(count: int) -> None:
        if count == at:
            raise error

    return log


@pytest.mark.parametrize(
    "run",
    [
        ImportError("No module named 'wandb'"),
        RuntimeError(f"no such key {SECRET}"),
        SystemExit(1),
        FakeRun(fail(0, OSError("disk"))),
        FakeRun(fail(2, BrokenPipeError("the service died"))),
    ],
    ids=["missing", "init", "exit", "first", "middle"],
)
def test_no_failure_reaches_the_run(
    tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    use(monkeypatch, run)
    tracker = start_tracker(TrackingSettings(), tmp_path, {}, warned.append)
    for step in range(5):
        tracker.scalars(step, {"loss": 1.0})
    tracker.close()
    assert len(warned) == 1
    assert warned[0].startswith("wandb: ")
    assert warned[0].endswith("the run continues without it (tracking.wandb: off silences this)")
    assert SECRET not in warned[0]


def test_a_hanging_service_does_not_hold_the_run(
    tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    taken = use(monkeypatch, FakeRun(lambda count: release.wait(60)))
    monkeypatch.setitem(tracking.CLOSE_SECONDS, "offline", 0.2)
    monkeypatch.setattr(tracking, "WAITING_CALLS", 5)
    tracker = start_tracker(TrackingSettings(), tmp_path, {}, warned.append)
    assert taken.wait(300)
    for step in range(3):
        tracker.scalars(step, {"loss": 1.0})
    tracker.close()
    assert warned == ["wandb: it did not finish within 0 seconds: the run continues without it (tracking.wandb: off "
                      "silences this)"]  # fmt: skip
    release.set()


def test_a_slow_service_is_left_behind(tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    taken = use(monkeypatch, FakeRun(lambda count: release.wait(60)))
    monkeypatch.setattr(tracking, "WAITING_CALLS", 5)
    tracker = start_tracker(TrackingSettings(), tmp_path, {}, warned.append)
    assert taken.wait(300)
    for step in range(20):
        tracker.scalars(step, {"loss": 1.0})
    assert len(warned) == 1
    assert "it does not keep up with the run" in warned[0]
    release.set()


def test_wandb_that_is_not_installed(
    tmp_path: Path, warned: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = start_tracker(TrackingSettings(), tmp_path / "run", {}, warned.append)
    tracker.close()
    assert len(warned) == 1
    assert "wandb" in warned[0]


OFFLINE = """
import sys
from pathlib import Path
from counterpoint.configs.train_section import TrackingSettings
from counterpoint.train.run.tracking import start_tracker
tracker = start_tracker(TrackingSettings(tags=("a",)), Path(sys.argv[1]), {"data": {"train": sys.argv[2]}}, print)
tracker.scalars(1, {"loss": 1.25})
tracker.table(1, "samples", ["prompt"], [["<|start|>"], ["b"]])
tracker.close()
"""


def test_real_wandb_offline(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet, all files in the run folder, no secret of settings or environment in any of them."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-" + "a" * 40)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    run = tmp_path / "run"
    run.mkdir()
    url = f"https://user:{SECRET}@host/x"
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(run), url], capture_output=True, text=True, check=True, timeout=300
    )
    assert (result.stdout, result.stderr) == ("", "")
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    (log,) = run.glob("wandb/offline-run-*/*.wandb")
    assert b"samples" in log.read_bytes()
    assert b"loss" in log.read_bytes()
    assert list(run.glob("wandb/offline-run-*/files/media/table/samples_*.table.json"))
    assert url.encode() not in written
    assert SECRET.encode() not in written
    assert b"sk-aaaa" not in written
    assert {path.name for path in run.iterdir()} == {"wandb"}
    assert not [path for path in home.rglob("*") if path.is_file()]


KILL = """
import os, signal, sys, time
from pathlib import Path
from counterpoint.configs.train_section import TrackingSettings
from counterpoint.train.run.tracking import start_tracker

def services():
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            command, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if command.startswith("wandb") and int(rest.split()[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found

tracker = start_tracker(TrackingSettings(), Path(sys.argv[1]), {}, lambda text: print(text, flush=True))
tracker.scalars(1, {"loss": 1.0})
deadline = time.monotonic() + 300
while not services() and time.monotonic() < deadline:
    time.sleep(0.1)
time.sleep(1.0)
for pid in services():
    os.kill(pid, signal.SIGKILL)
for step in range(2, 200):
    tracker.scalars(step, {"loss": 1.0})
    time.sleep(0.005)
tracker.close()
print("the run is over")
"""


def test_the_wandb_service_is_killed_in_the_middle(tmp_path: Path, home: Path) -> None:
    """The run warns once, continues, and ends without a traceback."""
    result = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0
    assert result.stderr == ""
    assert len(lines) == 2
    assert lines[0].startswith("wandb: ")
    assert "the run continues without it" in lines[0]
    assert lines[1] == "the run is over"
