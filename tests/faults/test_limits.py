"""Limits of the machine: of a file's size, of memory, of a file system that is mounted read-only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faulty import Place, losses, newest, weights, write_rows

LIMITED = f"{Path(__file__).parents[1] / 'faulty.py'}:limited"
READ_ONLY = f"{Path(__file__).parents[1] / 'faulty.py'}:read_only"


def one_line(place: Place, function: str, *arguments: object) -> str:
    """The one line of an error."""
    run = place.forks.start(function, *arguments, folder=place.folder)
    assert run.wait() == 1, run.told()
    told = run.err.read_text()
    assert told.count("\n") == 1, told
    return told


def test_a_limit_of_file_size_in_a_checkpoint(place: Place, whole: Place) -> None:
    """The first checkpoint holds a file that is larger."""
    told = one_line(place, LIMITED, {"FSIZE": 40_000}, ["train", "my.yaml"])
    assert "step-000002: a file of it is larger than this process may write (`ulimit -f`: 40.0 kB): raise that" in told
    assert newest(place) == []
    assert [path.name for path in (place.run / "checkpoints").iterdir()] == []
    place("train", "my.yaml", "--resume", "auto")
    assert (losses(place.run), weights(place.run)) == (losses(whole.run), weights(whole.run))


def test_a_limit_of_file_size_before_anything(place: Place) -> None:
    told = one_line(place, LIMITED, {"FSIZE": 500}, ["train", "my.yaml"])
    assert "File too large: raise the limit of a file's size (`ulimit -f`)" in told


def test_a_read_only_run_folder(finished: Place) -> None:
    folder = str(finished.run.relative_to(finished.folder))
    told = one_line(finished, READ_ONLY, str(finished.run), ["train", "--resume", folder])
    assert (
        told
        == f"{folder}/lock: Read-only file system: mount it for writing, or write somewhere else (`output`, `--out`)\n"
    )


@pytest.mark.parametrize("text", ["", '{"state": "run', "[]"])
def test_a_truncated_run_json(finished: Place, whole: Place, text: str) -> None:
    (finished.run / "run.json").write_text(text)
    shutil.rmtree(finished.run / "checkpoints" / "step-000006")
    assert "going on from step 4" in finished("train", "my.yaml", "--resume")
    assert json.loads((finished.run / "run.json").read_text())["state"] == "finished"
    assert (losses(finished.run), weights(finished.run)) == (losses(whole.run), weights(whole.run))


def test_memory_that_ends_is_told_with_what_to_change(place: Place) -> None:
    """The process gets 200 MB more than it has; a step takes more."""
    said = [
        {"role": "user", "content": "Count."},
        {"role": "assistant", "content": " ".join(str(n * n) for n in range(700))},
    ]
    write_rows(place.folder / "rows.jsonl", [{"messages": said}] * 8)
    told = one_line(
        place, LIMITED, {"AS": 200_000_000}, ["train", "my.yaml", "train.batch_rows=8", "data.max_tokens=16384"]
    )
    assert "out of memory: lower train.batch_rows=8" in told


@pytest.mark.parametrize("command", [["train", "my.yaml"], ["sample", "runs/x", "hello"]])
def test_an_address_space_in_which_libraries_crash(place: Place, command: list[str]) -> None:
    """Of a new process, as `ulimit -v` gives it."""
    done = subprocess.run(
        ["bash", "-c", 'ulimit -v 1500000; exec "$@"', "bash", sys.executable, "-m", "counterpoint.recipes.cli", *command],
        cwd=place.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "memory of this process is limited to 1.5 GB (`ulimit -v`), less than the libraries alone need (2.1 GB): raise "
        "the limit, or limit resident memory by a cgroup\n"
    )
