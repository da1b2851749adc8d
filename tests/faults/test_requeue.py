"""Runs that nobody watches, requeued: on another machine, and before they had anything."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from faulty import ON_HOST, Place, begun, losses, weights

import counterpoint.train.run.lock as lock
from counterpoint.configs.errors import RunError
from counterpoint.train.run.folder import RunFolder
from counterpoint.train.run.lock import LOCK_FILE, lock_folder

LONG = ("train.steps=100000", "train.checkpoint_every=1000", "eval.at_end=false")


def test_a_lost_machine_is_taken_over_and_the_run_goes_on_bit_for_bit(place: Place, whole: Place) -> None:
    first = place.forks.start(ON_HOST, "pod-a", ["train", "my.yaml"], folder=place.folder)
    first.until("\nstep 3/")
    first.send(signal.SIGKILL)
    first.wait()
    assert json.loads((place.run / LOCK_FILE).read_text())["host"] == "pod-a"
    # A minute later.
    os.utime(place.run / LOCK_FILE, (time.time() - 100,) * 2)
    again = place.forks.start(ON_HOST, "pod-b", ["train", "my.yaml", "--resume"], folder=place.folder)
    assert again.wait() == 0, again.told()
    assert f"warning: took over the folder from pid {first.pid} on pod-a, which gives no sign of life" in again.told()
    assert re.search(r"going on from step [24]\b", again.told()), again.told()
    assert (losses(place.run), weights(place.run)) == (losses(whole.run), weights(whole.run))


@pytest.mark.slow
def test_requeued_at_once_it_waits_for_a_sign_of_life(place: Place, whole: Place) -> None:
    first = place.forks.start(ON_HOST, "pod-a", ["train", "my.yaml"], True, 4.0, folder=place.folder)
    first.until("\nstep 3/")
    first.send(signal.SIGKILL)
    first.wait()
    again = place.forks.start(
        ON_HOST, "pod-b", ["train", "my.yaml", "--resume", "auto"], True, 4.0, folder=place.folder
    )
    assert again.wait() == 0, again.told()
    assert re.search(r"was used by pid \d+ on pod-a: waiting [1-4] s to see whether it lives", again.told())
    assert weights(place.run) == weights(whole.run)


@pytest.mark.slow
def test_requeued_at_once_with_the_real_minute(place: Place, whole: Place) -> None:
    first = place.forks.start(ON_HOST, "pod-a", ["train", "my.yaml"], folder=place.folder)
    first.until("\nstep 3/")
    first.send(signal.SIGKILL)
    first.wait()
    began = time.monotonic()
    again = place.forks.start(ON_HOST, "pod-b", ["train", "my.yaml", "--resume"], folder=place.folder)
    assert again.wait() == 0, again.told()
    assert time.monotonic() - began > 45
    assert weights(place.run) == weights(whole.run)


@pytest.mark.parametrize("host", ["pod-a", "pod-b"])
def test_a_living_run_is_not_taken_over_where_locks_are_not_passed_on(place: Place, host: str) -> None:
    """On another machine, and on the same one through a file system without locks."""
    first = place.forks.start(ON_HOST, "pod-a", ["train", "my.yaml", *LONG], False, 3.0, folder=place.folder)
    first.until("\nstep 3/")
    second = place.forks.start(ON_HOST, host, ["train", "my.yaml", *LONG, "--resume"], False, 3.0, folder=place.folder)
    assert second.wait() == 1, second.told()
    assert f"a run on another machine is using it (pid {first.pid} on pod-a): wait for it, or stop it" in second.told()
    first.send(signal.SIGTERM)
    assert first.wait() == 143, first.told()


@pytest.mark.slow
def test_a_run_that_stood_still_and_was_taken_over_writes_no_more(place: Place) -> None:
    first = place.forks.start(ON_HOST, "pod-a", ["train", "my.yaml", *LONG], False, 2.0, folder=place.folder)
    first.until("\nstep 3/")
    first.send(signal.SIGSTOP)
    again = place.forks.start(
        ON_HOST, "pod-b", ["train", "my.yaml", *LONG, "--resume"], False, 2.0, folder=place.folder
    )
    again.until("\nstep 5/")
    first.send(signal.SIGCONT)
    assert first.wait() == 1, first.told()
    assert (
        f"taken over by pid {again.pid} on pod-b while this process stood still: its run goes on there"
        in first.err.read_text()
    )
    assert first.err.read_text().count("\n") == 1
    state = json.loads((place.run / "run.json").read_text())
    assert (state["state"], state["pid"]) == ("running", again.pid)
    again.send(signal.SIGTERM)
    assert again.wait() == 143, again.told()
    assert json.loads((place.run / LOCK_FILE).read_text() or "{}") == {}


@pytest.mark.slow
def test_two_that_take_over_at_once_are_not_both_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    os.utime(tmp_path / LOCK_FILE, (time.time() - 100,) * 2)
    got: list[object] = []

    def take() -> None:
        try:
            got.append(lock_folder(tmp_path, beat=1.0, stale=10.0))
        except RunError as error:
            got.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (refused,) = (each for each in got if isinstance(each, str))
    assert "another run" in refused or "a run on another machine" in refused


def test_a_run_that_lost_its_folder_writes_and_removes_nothing_there(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.state(state="running")
        other = json.dumps({"pid": 1, "host": "elsewhere", "token": "b"})
        (tmp_path / LOCK_FILE).write_text(other)
        with pytest.raises(RunError, match="taken over by pid 1 on elsewhere while this process stood still"):
            folder.state(state="finished")
    assert json.loads((tmp_path / "run.json").read_text()) == {"state": "running"}
    assert (tmp_path / LOCK_FILE).read_text() == other


def test_auto_begins_where_there_is_nothing_and_goes_on_where_there_is(place: Place, whole: Place) -> None:
    """The same command each time: nothing yet, killed before the first checkpoint, killed later, finished."""
    command = ("my.yaml", "--resume", "auto")
    for step in (1, 5):
        run = begun(place, *command[1:], step=step)
        run.send(signal.SIGKILL)
        run.wait()
    assert "going on from step 4" in place("train", *command)
    assert (losses(place.run), weights(place.run)) == (losses(whole.run), weights(whole.run))
    before = weights(place.run)
    place("train", *command)
    assert weights(place.run) == before


def test_auto_begins_where_a_run_failed_before_it_had_anything(place: Place) -> None:
    place.error("train", "my.yaml", "data.train=missing.jsonl", "--resume", "auto")
    assert "step 6/6" in place("train", "my.yaml", "--resume", "auto")


def test_auto_needs_a_run_file(place: Place) -> None:
    assert "arguments are required: CONFIG" in place.error("train", "--resume", "auto", code=2)
