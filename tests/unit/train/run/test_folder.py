from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from counterpoint.configs.errors import RunError
from counterpoint.configs.load import load_run
from counterpoint.configs.schema import SftRun
from counterpoint.train.run.folder import (
    RunFolder,
    json_lines,
    named_run_folder,
    new_run_folder,
    newest_run_folder,
)
from counterpoint.train.run.lock import LOCK_FILE, lock_folder
from counterpoint.train.run.versions import git_state, versions

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


def settings(tmp_path: Path, name: str = "my.run") -> SftRun:
    values = {"recipe": "sft", "name": name, "output": str(tmp_path / "runs"), "data": {"train": "rows.jsonl"}}
    return SftRun.model_validate(values)


def test_folders_are_never_shared(tmp_path: Path) -> None:
    folders = [new_run_folder(settings(tmp_path)) for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(re.fullmatch(r"my\.run-\d{8}-\d{6}(-\d)?", folder.name) for folder in folders)


def test_the_newest_of_a_name(tmp_path: Path) -> None:
    run = settings(tmp_path)
    with pytest.raises(RunError, match=r"no run of the name my\.run to resume"):
        newest_run_folder(run)
    for name in ("my.run-20260101-000000", "my.run-20260101-000000-2", "my.run-20260101-000000-10", "my.run-x",
                 "myxrun-20270101-000000", "my.run-other-20280101-000000"):  # fmt: skip
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("recipe: sft\n")
        (tmp_path / "runs" / name / "run.json").write_text('{"data": "0123"}')
    (tmp_path / "runs" / "my.run-20300101-000000").mkdir()
    never_began = tmp_path / "runs" / "my.run-20300102-000000"
    never_began.mkdir()
    (never_began / "config.yaml").write_text("recipe: sft\n")
    (never_began / "run.json").write_text('{"state": "failed"}')
    assert newest_run_folder(run).name == "my.run-20260101-000000-10"


def test_a_run_is_named_by_its_folder_or_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-000001").mkdir(parents=True)
    with pytest.raises(RunError, match="not a run folder"):
        named_run_folder(str(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").write_text("recipe: sft\n")
    assert named_run_folder(str(tmp_path / "run")) == tmp_path / "run"
    assert named_run_folder(str(tmp_path / "run" / "checkpoints" / "step-000001")) == tmp_path / "run"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="no run folder can be made there"):
        new_run_folder(settings(tmp_path))


def test_the_folder_describes_its_run(tmp_path: Path) -> None:
    run = settings(tmp_path)
    with RunFolder(new_run_folder(run)) as folder:
        folder.describe(run, versions("cpu"))
        folder.state(seeds={"seed": 0}, state="running")
        folder.state(state="finished")
    assert load_run(folder.path / "config.yaml") == run
    told = json.loads((folder.path / "versions.json").read_text())
    assert told["torch"].startswith("2.")
    assert told["python"].startswith("3.")
    assert told["device"] == "cpu"
    assert json.loads((folder.path / "run.json").read_text()) == {"seeds": {"seed": 0}, "state": "finished"}
    assert not list(folder.path.glob("*.unfinished"))


def test_no_secret_is_written(tmp_path: Path) -> None:
    run = settings(tmp_path).model_copy(update={"name": f"x {SECRET}"})
    (tmp_path / "r").mkdir()
    with RunFolder(tmp_path / "r") as folder:
        folder.describe(run, {"note": f"https://me:{SECRET}@host"})
        folder.state(reason=f"token={SECRET}")
        folder.log(f"with {SECRET}")
    for path in folder.path.iterdir():
        assert SECRET not in path.read_text()


def test_metrics_of_steps_to_be_taken_again_are_dropped(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        for step in (1, 2, 3):
            folder.metrics({"step": step, "loss": 1.0 / step})
            folder.metrics({"step": step, "valid_loss": 1.0})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "lo')
        folder.forget_metrics_after(2)
        folder.metrics({"step": 3, "loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 1.0}, {"step": 1, "valid_loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.5},
    ]  # fmt: skip


def test_warnings_of_libraries_go_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with RunFolder(tmp_path) as folder:
        folder.take_library_logs()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old name", FutureWarning, stacklevel=1)
        logging.getLogger("transformers.trainer").warning("a library warning")
        logging.getLogger("peft").info("chatter")
    log = (tmp_path / "log.txt").read_text()
    assert "FutureWarning: old name" in log
    assert "transformers.trainer: a library warning" in log
    assert "chatter" not in log
    assert capfd.readouterr().err == ""


def test_a_folder_that_starts_anew_keeps_only_its_lock(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with RunFolder(tmp_path) as folder:
        folder.empty()
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
        with pytest.raises(RunError, match="another run is using it"):
            lock_folder(tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from counterpoint.train.run.lock import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_process_is_refused_and_the_dead_one_forgotten(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"another run is using it \(pid {first.pid} on .+\): wait for it"):
            lock_folder(tmp_path)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    lock = lock_folder(tmp_path)
    assert lock.stale is not None
    assert lock.stale.startswith(f"pid {first.pid} on ")
    lock.release()
    again = lock_folder(tmp_path)
    assert again.stale is None
    again.release()


def test_a_taken_over_lock_is_logged(tmp_path: Path) -> None:
    import socket

    (tmp_path / LOCK_FILE).write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))
    with RunFolder(tmp_path):
        pass
    assert f"took over the lock of pid 1 on {socket.gethostname()}, which is dead" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_a_lock_of_another_machine_holds_while_it_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    dies = threading.Event()

    def live() -> None:
        while not dies.wait(0.2):
            os.utime(path)

    holder = threading.Thread(target=live)
    holder.start()
    with pytest.raises(RunError, match=r"a run on another machine is using it \(pid 1 on elsewhere\)"):
        lock_folder(tmp_path, beat=1.0, stale=10.0)
    dies.set()
    holder.join()
    lock = lock_folder(tmp_path, beat=0.2, stale=1.0)
    assert (lock.stale, lock.moved) == ("pid 1 on elsewhere", True)
    assert capsys.readouterr().out.count("was used by pid 1 on elsewhere: waiting") == 2
    touched = path.stat().st_mtime
    time.sleep(0.5)
    assert path.stat().st_mtime > touched
    lock.release()
    assert path.read_text() == ""


def test_git_state(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert git_state(tmp_path) is None
    git("init")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_text("1")
    (tmp_path / "installed").mkdir()
    git("add", "inner")
    git("commit", "-m", "first")
    state = git_state(tmp_path / "inner")
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "inner" / "a").write_text("2")
    assert git_state(tmp_path / "inner") == {"commit": state["commit"], "dirty": True}
    assert git_state(tmp_path / "installed") is None


def test_json_lines_end_with_newlines_only(tmp_path: Path) -> None:
    """Other line breaks (U+2028, NEL) are kept in texts; a line that a kill cut short is left out."""
    path = tmp_path / "rows.jsonl"
    assert json_lines(path) == []
    rows = [{"text": f"a{mark}b"} for mark in ("\u2028", "\u2029", "\x85", "\x1c", "\r\n", "\x0b")]
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(whole + '{"text": "é'.encode()[:-1])
    assert json_lines(path) == rows
