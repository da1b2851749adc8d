"""Signals, lost terminals and pipes: a run ends with a checkpoint where it is asked to end, and goes on where not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import Place, begun, losses, newest, weights

LONG = ("train.steps=100000", "train.checkpoint_every=1000", "eval.at_end=false")
COUNTERPOINT = [sys.executable, "-m", "counterpoint.recipes.cli"]


def wait_until(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_ends_the_run_with_a_checkpoint(place: Place, whole: Place, name: str) -> None:
    number = signal.Signals[name]
    run = begun(place, "train.checkpoint_every=1000")
    run.send(number)
    code = run.wait()
    assert code in (128 + number, 0), run.told()
    if code:
        assert "with a checkpoint; continue with" in run.told()
        (checkpoint,) = newest(place)
        assert checkpoint >= "step-000003"
        place("train", "my.yaml", "train.checkpoint_every=1000", "--resume")
    assert (losses(place.run), weights(place.run)) == (losses(whole.run), weights(whole.run))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_a_signal_to_the_launcher_ends_all_processes_with_a_checkpoint(place: Place, name: str) -> None:
    """Without a terminal, as a scheduler starts it."""
    command = [*COUNTERPOINT, "train", "my.yaml", *LONG, "launch.processes=2", "train.batch_rows=1"]
    with (place.folder / "told").open("w") as told:
        launcher = subprocess.Popen(command, cwd=place.folder, stdout=told, stderr=told, start_new_session=True)
    wait_until(lambda: "\nstep 3/" in (place.folder / "told").read_text())
    launcher.send_signal(signal.Signals[name])
    launcher.wait(120)
    assert "with a checkpoint; continue with" in (place.folder / "told").read_text()
    assert len(newest(place)) == 1
    assert json.loads((place.run / "run.json").read_text())["state"] == "stopped"


AT_A_TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "counterpoint.recipes.cli", *sys.argv[1:]])
seen = b""
while b"step 2/" not in seen:
    seen += os.read(terminal, 4096)
print(pid, flush=True)
os.close(terminal)
os._exit(0)  # the terminal is gone; the run gets SIGHUP, and an error for whatever it prints
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_lost_terminal_does_not_end_a_run(place: Place, whole: Place, processes: int) -> None:
    """As of a lost connection: the terminal hangs up."""
    several = ("launch.processes=2", "train.batch_rows=1") if processes == 2 else ()
    command = [sys.executable, "-c", AT_A_TERMINAL, "train", "my.yaml", "train.checkpoint_every=1", *several]
    subprocess.run(command, cwd=place.folder, check=True, capture_output=True, timeout=300)
    wait_until(lambda: json.loads((place.run / "run.json").read_text()).get("state") != "running")
    assert json.loads((place.run / "run.json").read_text())["state"] == "finished"
    assert "standard output is gone (Input/output error): the run goes on, and is told here" in place.log()
    if processes == 1:
        assert weights(place.run) == weights(whole.run)


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_a_run(place: Place, whole: Place) -> None:
    run = subprocess.Popen(
        [*COUNTERPOINT, "train", "my.yaml"], cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    while "step 2/" not in run.stdout.readline():
        pass
    run.stdout.close()
    assert run.stderr is not None
    told = run.stderr.read()
    assert run.wait() == 0, told
    assert "Broken" not in told
    assert "standard output is gone (Broken pipe)" in place.log()
    assert f"report      {place.run.relative_to(place.folder)}/report.html" in place.log()
    assert weights(place.run) == weights(whole.run)


@pytest.mark.slow
def test_a_full_device_behind_standard_output(place: Place) -> None:
    """It is not the disk of the run folder that is full."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COUNTERPOINT, "train", "my.yaml"], cwd=place.folder, stdout=full, stderr=subprocess.PIPE, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "standard output is gone (No space left on device)" in place.log()
        done = subprocess.run(
            [*COUNTERPOINT, "configs", "ls"], cwd=place.folder, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "standard output: cannot be written (No space left on device): send it somewhere else\n"
