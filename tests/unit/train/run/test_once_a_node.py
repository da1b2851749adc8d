"""Two processes of one run: the first of a machine reads the data, and the other takes what it has written."""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from pathlib import Path

from forks import Forks

from counterpoint.configs.errors import CounterpointError, DataError
from counterpoint.configs.schema import SftRun
from counterpoint.train.run.once_a_node import once_a_node

SETTINGS = {"recipe": "sft", "data": {"train": "rows.jsonl"}, "train": {"device": "cpu"}}


def process(folder: str, what: str) -> int:
    """One process: it tells what it has made, seen and met in `rank.json` of the folder."""
    rank, parent = os.environ.get("RANK", "0"), Path(folder)
    told: dict[str, object] = {"made": 0}
    if what == "machines":  # each process on one of its own
        platform.node = lambda: f"machine{rank}"
        os.environ["LOCAL_RANK"] = "0"

    def make(into: Path) -> None:
        told["made"] = 1
        if what == "bad":
            raise DataError("rows.jsonl:1: row: not JSON")
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.3)
        (into / "rows").write_text(f"by {rank}")

    try:
        with once_a_node(SftRun.model_validate(SETTINGS), parent, make) as place:
            file = (place / "rows").open()
        with file:
            told |= {"seen": file.read(), "inode": os.fstat(file.fileno()).st_ino}  # after its name is gone
    except CounterpointError as error:
        told["error"] = f"{type(error).__name__}: {error}"
    (parent / f"{rank}.json").write_text(json.dumps(told))
    return 0


def told(forks: Forks, folder: Path, what: str, processes: int = 2) -> list[dict[str, object]]:
    group = forks.group(f"{__file__}:process", str(folder), what, folder=folder, processes=processes)
    for fork in group:  # `wait_for` would end the other one with it
        fork.wait()
    found = [folder / f"{rank}.json" for rank in range(processes)]
    assert [fork.told() for fork in group if "Traceback" in fork.told()] == []
    return [json.loads(file.read_text()) if file.exists() else {} for file in found]


def test_the_first_reads_and_both_hold_the_same_file(forks: Forks, tmp_path: Path) -> None:
    first, second = told(forks, tmp_path, "good")
    assert (first["made"], second["made"]) == (1, 0)
    assert first["seen"] == second["seen"] == "by 0"
    assert first["inode"] == second["inode"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_each_machine_reads_for_itself(forks: Forks, tmp_path: Path) -> None:
    first, second = told(forks, tmp_path, "machines")
    assert (first["seen"], second["seen"]) == ("by 0", "by 1")


def test_an_error_of_the_first_is_that_of_all(forks: Forks, tmp_path: Path) -> None:
    first, second = told(forks, tmp_path, "bad")
    assert first["error"] == second["error"] == "DataError: rows.jsonl:1: row: not JSON"


def test_where_the_first_is_killed_the_other_ends(forks: Forks, tmp_path: Path) -> None:
    first, second = told(forks, tmp_path, "killed")
    assert first == {}
    assert "the process that read the data has ended" in str(second["error"])


def test_one_process_alone(forks: Forks, tmp_path: Path) -> None:
    assert told(forks, tmp_path, "good", processes=1)[0]["seen"] == "by 0"
