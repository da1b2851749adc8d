"""What a run file names and is not there is told before torch is imported, one line each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = 'recipe: sft\ndata: {train: "example:quickstart"}\n'
# Runs the command and then says whether it had to import torch.
SCRIPT = (
    "import sys; from counterpoint.recipes.cli import main; code = main(sys.argv[1:]); "
    "print('torch' in sys.modules); sys.exit(code)"
)


@pytest.mark.parametrize(
    ("setting", "code", "told"),
    [
        ("model.name=missing", 1, "model.name: there is no folder `missing`: give `tiny`, a checkpoint folder, or"),
        ("model.name=/no/where", 1, "model.name: there is no folder `/no/where`: give"),
        ("model.adapter=gone", 2, "model.adapter: gone: no such folder: name a run"),
        ("data.train=none.jsonl", 1, "none.jsonl: no such file or folder: check the path"),
        ("data.valid=none.jsonl", 1, "none.jsonl: no such file or folder: check the path"),
        ("output=run.yaml/runs", 1, "run.yaml is a file: name a folder"),
    ],
)
def test_a_place_that_is_not_there(setting: str, code: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "train", "run.yaml", setting], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, "False\n")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
