from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import RunError
from counterpoint.train.checkpoints import save
from counterpoint.train.checkpoints.resume import (
    CHECKPOINTS,
    Checkpoint,
    Identity,
    changed_settings,
    check_same_run,
    newest_complete,
    read_checkpoint,
)
from counterpoint.train.model.marker import why_broken


def flip(path: Path, character: str) -> None:
    """One bit of the last such character in a text."""
    head, _, rest = path.read_text().rpartition(character)
    path.write_text(head + chr(ord(character) ^ 1) + rest)


def fill(content: str) -> Any:
    def write(folder: Path) -> None:
        (folder / "weights").write_text(content)
        (folder / "inner").mkdir()
        (folder / "inner" / "state").write_text(content * 2)

    return write


def checkpoint(run: Path, step: int, content: str = "x") -> Path:
    target = run / CHECKPOINTS / save.checkpoint_name(step)
    return save.write_folder(target, fill(content), {"step": step})


def test_a_whole_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 7, "abc")
    found, passed_over = newest_complete(tmp_path)
    assert found is not None
    assert (found.folder, found.step, passed_over) == (folder, 7, [])
    assert set(found.details["files"]) == {"weights", "inner/state"}
    assert found.details["files"]["inner/state"]["bytes"] == 6
    assert [p.name for p in folder.parent.iterdir()] == ["step-000007"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "weights").unlink(), "weights is missing"),
        (lambda f: (f / "weights").write_text("ab"), "weights has 2 bytes instead of 3"),
        (lambda f: (f / "weights").write_text("abd"), "weights is damaged (its sha256 differs)"),
        (lambda f: (f / save.MARKER).unlink(), "not finished (the run was stopped while it was written)"),
        (lambda f: (f / save.MARKER).write_text("{"), "complete.json cannot be read"),
        (lambda f: (f / save.MARKER).write_text("[]"), "complete.json cannot be read"),
        (lambda f: (f / save.MARKER).write_text('{"files": {"weights": 3}}'), "complete.json cannot be read"),
        (lambda f: flip(f / save.MARKER, "3"), "complete.json is damaged (its own checksum differs)"),
    ],
)
def test_a_broken_one_is_passed_over_and_named(tmp_path: Path, damage: Any, reason: str) -> None:
    checkpoint(tmp_path, 5)
    newest = checkpoint(tmp_path, 10, "abc")
    damage(newest)
    found, passed_over = newest_complete(tmp_path)
    assert found is not None
    assert found.step == 5
    assert passed_over == [f"step-000010: {reason}"]
    with pytest.raises(RunError, match="take another checkpoint"):
        read_checkpoint(newest)


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (2_000_000, 999_999, 5):
        checkpoint(tmp_path, step)
    found, _ = newest_complete(tmp_path)
    assert found is not None
    assert found.step == 2_000_000
    assert [save.step_of(f) for f in save.checkpoints_in(tmp_path / CHECKPOINTS)] == [5, 999_999, 2_000_000]


def test_no_run_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_complete(tmp_path / "nowhere") == (None, [])
    assert save.clean_partial(tmp_path / "nowhere") == []


def test_rotation_keeps_the_newest_whole_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    (tmp_path / CHECKPOINTS / "step-000004" / save.MARKER).unlink()
    gone = save.rotate(tmp_path / CHECKPOINTS, 2)
    assert [f.name for f in gone] == ["step-000001"]
    assert [f.name for f in save.checkpoints_in(tmp_path / CHECKPOINTS)] == [
        "step-000002",
        "step-000003",
        "step-000004",
    ]
    assert save.rotate(tmp_path / CHECKPOINTS, 0) == []


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3, "old")
    folder = checkpoint(tmp_path, 3, "new")
    assert (folder / "weights").read_text() == "new"
    assert why_broken(folder) is None
    assert [p.name for p in folder.parent.iterdir()] == ["step-000003"]


def test_a_failure_leaves_the_old_one_and_no_partial(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3, "old")

    def failing(folder: Path) -> None:
        (folder / "weights").write_text("new")
        raise RuntimeError("the writer broke")

    with pytest.raises(RuntimeError, match="the writer broke"):
        save.write_folder(tmp_path / CHECKPOINTS / "step-000003", failing, {"step": 3})
    assert [p.name for p in (tmp_path / CHECKPOINTS).iterdir()] == ["step-000003"]
    assert (tmp_path / CHECKPOINTS / "step-000003" / "weights").read_text() == "old"


def test_what_kills_left_is_cleaned(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 1)
    unmarked = checkpoint(tmp_path, 2)
    (unmarked / save.MARKER).unlink()
    partial = tmp_path / CHECKPOINTS / ".partial-step-000003"
    partial.mkdir()
    (tmp_path / CHECKPOINTS / "notes.txt").write_text("mine")
    assert newest_complete(tmp_path)[1] == [
        ".partial-step-000003: not finished (the run was stopped while it was written)",
        "step-000002: not finished (the run was stopped while it was written)",
    ]
    assert save.clean_partial(tmp_path / CHECKPOINTS) == [partial, unmarked]
    assert sorted(p.name for p in (tmp_path / CHECKPOINTS).iterdir()) == ["notes.txt", whole.name]


SCRIPT = """
import os, signal, sys
from pathlib import Path
from counterpoint.train.checkpoints import save
target, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = [0]
real = getattr(os, name)
def dying(*args, **kwargs):
    calls[0] += 1
    if calls[0] == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
def fill(folder):
    (folder / "weights").write_text("new")
    (folder / "state").write_text("new")
if count:
    setattr(os, name, dying)
    save.write_folder(target, fill, {"step": 3})
    save.rotate(target.parent, 1)
print(calls[0])
"""
# A save of two files makes 6 calls of fsync (2 files, their folder, its parent, marker, folder), 2 of rename where a
# checkpoint of that step exists, 1 of replace (the marker).
KILLS = [
    *(("fsync", n) for n in range(1, 7)),
    ("rename", 1),
    ("rename", 2),
    ("replace", 1),
    ("unlink", 1),
    ("rmdir", 1),
]


@pytest.mark.parametrize(("name", "count"), KILLS)
def test_kill_in_every_phase_of_a_save(tmp_path: Path, name: str, count: int) -> None:
    """A checkpoint of step 3 is replaced, and one of step 1 rotated out; killed anywhere, the newest is old or new."""
    checkpoint(tmp_path, 1, "one")
    target = checkpoint(tmp_path, 3, "old")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(target), name, str(count)], capture_output=True, text=True, check=False
    )
    assert result.returncode == -9, result.stdout + result.stderr
    save.clean_partial(tmp_path / CHECKPOINTS)
    found, passed_over = newest_complete(tmp_path)
    assert found is not None
    assert passed_over == []
    assert found.step == 3
    assert (found.folder / "weights").read_text() in ("old", "new")
    leftovers = {p.name for p in (tmp_path / CHECKPOINTS).iterdir()} - {"step-000001", "step-000003"}
    assert not leftovers


def test_every_phase_was_killed(tmp_path: Path) -> None:
    """The list of kills above covers every call that a save makes."""
    counts = {}
    for name in {name for name, _ in KILLS}:
        folder = tmp_path / name
        checkpoint(folder, 1)
        target = checkpoint(folder, 3)
        run = [sys.executable, "-c", SCRIPT, str(target), name, "999"]
        counts[name] = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    killed = {name: max(n for other, n in KILLS if other == name) for name in counts}
    assert {name: killed[name] for name in ("fsync", "rename", "replace")} == {
        name: counts[name] for name in ("fsync", "rename", "replace")
    }


def test_no_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"step-000001: the disk is full: 1000000\.0 GB are needed, .* are free"
    ) as error:
        save.write_folder(tmp_path / "step-000001", fill("x"), {}, expected_bytes=10**15)
    assert "free some space" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_while_writing(tmp_path: Path, raised: Exception) -> None:
    old = checkpoint(tmp_path, 1, "old")

    def filling(folder: Path) -> None:
        (folder / "weights").write_bytes(bytes(5000))
        raise raised

    with pytest.raises(RunError, match=r"the disk is full: 20\.0 kB are needed, .* are free") as error:
        save.write_folder(tmp_path / CHECKPOINTS / "step-000002", filling, {}, expected_bytes=20_000)
    assert error.value.__cause__ is raised
    assert [p.name for p in (tmp_path / CHECKPOINTS).iterdir()] == ["step-000001"]
    assert why_broken(old) is None


def test_writers_that_lose_the_error_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save raises a bare RuntimeError on a full disk: what is left free tells."""
    usage = namedtuple("usage", "total used free")
    sizes = iter([10**6, 100])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, next(sizes)))

    def filling(folder: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with pytest.raises(RunError, match=r"5\.0 kB are needed, 100 bytes are free"):
        save.write_folder(tmp_path / "step-000002", filling, {}, expected_bytes=5000)


def identity(**changes: Any) -> Identity:
    settings = {
        "seed": 0,
        "name": "a",
        "train": {"learning_rate": 0.1, "batch_rows": 2, "accumulation": 4, "threads": 2, "checkpoint_every": 5},
        "eval": {"every": 10},
        "lora": {"layers": [0, 1]},
    }
    for path, value in changes.items():
        section, _, key = path.rpartition("__")
        (settings[section] if section else settings)[key] = value  # type: ignore[index]
    return Identity(settings, "f" * 64, 8)


def saved(who: Identity) -> Checkpoint:
    return Checkpoint(Path("runs/a/checkpoints/step-000005"), 5, json.loads(json.dumps(who.as_details())))


def test_the_same_run_goes_on() -> None:
    assert check_same_run(saved(identity()), identity()) == []
    free = identity(
        name="b", train__threads=1, train__checkpoint_every=1, eval__every=3, train__batch_rows=8, train__accumulation=1
    )
    assert check_same_run(saved(identity()), free) == []


def test_changed_settings_are_refused_and_named() -> None:
    other = identity(train__learning_rate=0.2, lora__layers=(0,))
    with pytest.raises(RunError) as error:
        check_same_run(saved(identity()), other)
    assert "lora.layers [0, 1] -> [0]; train.learning_rate 0.1 -> 0.2: use the old ones" in str(error.value)
    steered = identity(train__learning_rate=0.2)
    assert check_same_run(saved(identity()), steered, allow_changes=True) == ["train.learning_rate 0.1 -> 0.2"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora__layers": [0]}, r"lora.layers \[0, 1\] -> \[0\]"),
        ({"seed": 1, "train__learning_rate": 0.2}, r"seed 0 -> 1: use the old one"),
    ],
)
def test_what_made_the_checkpoint_is_refused_even_where_changes_are_allowed(changes: Any, told: str) -> None:
    with pytest.raises(RunError, match=f"which --overwrite cannot change: {told}"):
        check_same_run(saved(identity()), identity(**changes), allow_changes=True)


def test_a_setting_that_an_older_version_did_not_have_is_no_obstacle() -> None:
    newer = identity(lora__dropout=0.0)
    assert check_same_run(saved(identity()), newer, allow_changes=True) == ["lora.dropout unset -> 0.0"]


def test_rows_per_step_are_compared_as_one_number() -> None:
    other = Identity(identity().settings, "f" * 64, 16)
    with pytest.raises(RunError, match=r"rows per step \(batch_rows x accumulation x processes\) 8 -> 16"):
        check_same_run(saved(identity()), other)
    with pytest.raises(RunError, match=r"which --overwrite cannot change: rows per step .* 8 -> 16"):
        check_same_run(saved(identity()), other, allow_changes=True)


def test_changed_data_is_always_refused() -> None:
    other = Identity(identity().settings, "e" * 64, 8)
    with pytest.raises(RunError, match=r"the training data changed .*ffffffffffff then, eeeeeeeeeeee now"):
        check_same_run(saved(identity()), other, allow_changes=True)


def test_settings_that_come_or_go_are_changes() -> None:
    assert changed_settings({"a": 1, "b": {}}, {"b": {"c": None}}) == [
        "a 1 -> unset",
        "b {} -> unset",
        "b.c unset -> null",
    ]


def test_permissions_are_not_mistaken_for_a_full_disk(tmp_path: Path) -> None:
    def denied(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.raises(PermissionError):
        save.write_folder(tmp_path / "step-000002", denied, {})
