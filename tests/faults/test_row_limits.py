"""Rows of any size, packed or not: read in bounded memory, and reported with their line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from faulty import Place, row, write_rows
from pyarrow import parquet

from counterpoint.data.rows.open_file import MOST_BYTES

LONG = {"messages": [{"role": "user", "content": "a" * (50 << 20)}, {"role": "assistant", "content": "2"}]}


def bounded(folder: Path, *arguments: str, gigabytes: float = 2) -> subprocess.CompletedProcess[str]:
    """The command in a new process with a limit on its address space; it takes 0.5 GB without doing anything."""
    limit = f'ulimit -v {int(gigabytes * 2**20)}; exec {sys.executable} -m counterpoint.recipes.cli "$@"'
    return subprocess.run(["sh", "-c", limit, "sh", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("bomb.jsonl.gz", b""),
        ("bomb.json.gz", b""),
        ("bomb.json.gz", b'[{"messages": "'),
        ("bomb.csv.gz", b'x,y\n"'),
        ("bomb.jsonl.gz", b"{"),
    ],
    ids=["lines", "text", "array", "cell", "object"],
)
def test_a_packed_bomb(tmp_path: Path, name: str, before: bytes) -> None:
    (tmp_path / name).write_bytes(gzip.compress(before) + 400 * gzip.compress(b"a" * (1 << 20)))
    done = bounded(tmp_path, "validate", name, gigabytes=0.8)
    assert done.returncode == 1, done.stdout + done.stderr
    told = done.stdout + done.stderr
    assert "longer than 16 MB" in told, told
    assert "split it into several rows" in told
    assert "Traceback" not in told


def test_a_row_of_50_mb_among_others(place: Place) -> None:
    """Quarantined with its line and its beginning; the rows around it are trained."""
    write_rows(place.folder / "rows.jsonl", [row(0), LONG, *(row(n) for n in range(1, 12))])
    told = place("train", "my.yaml", "data.bad_rows_limit=0.2", "train.steps=1", "eval.at_end=false")
    assert "rows.jsonl:2: row: longer than 16 MB: split it into several rows, or cut its longest text" in told
    (bad,) = (place.run / "bad_rows.jsonl").read_text().splitlines()
    assert (json.loads(bad)["source"], json.loads(bad)["kind"], len(bad) < 3000) == (
        "rows.jsonl:2",
        "row_too_long",
        True,
    )
    done = bounded(place.folder, "validate", "rows.jsonl")
    assert "rows.jsonl:2" in done.stdout
    assert "12" in done.stdout


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows.txt", "rows.parquet"])
def test_every_container_has_the_limit(place: Place, name: str) -> None:
    text = "a" * (MOST_BYTES + 1)
    path = place.folder / name
    if name == "rows.json":
        path.write_text(json.dumps([row(0), {"text": text}]))
    elif name == "rows.csv":
        path.write_text(f'prompt,completion\n1,2\n"{text}",3\n')
    elif name == "rows.txt":
        path.write_text(text)
    else:
        parquet.write_table(pyarrow.table({"prompt": ["1", text], "completion": ["2", "3"]}), path)
    told = place("validate", name, code=1)
    line = {"rows.json": "1[2]", "rows.csv": 3, "rows.txt": 1, "rows.parquet": 2}[name]
    assert f"{name}:{line}: " in told
    assert "longer than 16 MB" in told


def test_a_row_just_below_the_limit_is_read(place: Place) -> None:
    """In memory of a few times its size."""
    said = [{"role": "user", "content": "word " * (3 << 20)}, {"role": "assistant", "content": "2"}]
    write_rows(place.folder / "rows.jsonl", [{"messages": said}])
    done = bounded(place.folder, "validate", "rows.jsonl", gigabytes=3)
    assert done.returncode == 0, done.stdout + done.stderr
