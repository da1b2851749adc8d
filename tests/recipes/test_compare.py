"""`counterpoint compare` through its command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint.recipes.cli import main


def samples(folder: Path, scores: list[float], **more: Any) -> str:
    folder.mkdir()
    rows = [
        {"task": "sums", "id": f"{n}\x1b[31m", "effort": "low", "sample": 0, "score": score, "violations": [], **more}
        for n, score in enumerate(scores)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = samples(tmp_path / "a", [0.0] * 30 + [1.0]), samples(tmp_path / "b", [1.0] * 25 + [0.0] * 6)
    assert main(["compare", a, b]) == 0
    out = capsys.readouterr().out
    assert "31 items on both sides" in out
    assert "answers: B is 77.4 points better" in out
    assert "channels: They do not differ on any item" in out
    assert "wrong in A, right in B: 25" in out
    assert "… 5 more (--all)" in out
    assert "right in A, wrong in B: 1" in out
    assert "\x1b" not in out
    assert main(["compare", f"{a}/samples.jsonl", b, "--all"]) == 0
    assert "more (--all)" not in capsys.readouterr().out


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = samples(tmp_path / "a", [0.0, 1.0]), samples(tmp_path / "b", [1.0, 1.0])
    assert main(["compare", a, b, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["items"] == 2
    assert found["differences"][0]["told"] == "unclear"
    assert found["flips"]["score"] == [{"task": "sums", "id": "0\x1b[31m", "effort": "low", "a": 0.0, "b": 1.0}]


def test_run_folders_and_evaluations_stand_for_their_tuned_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, scores in (("first", [0.0, 1.0]), ("second", [1.0, 1.0])):
        (tmp_path / name / "evaluation").mkdir(parents=True)
        samples(tmp_path / name / "evaluation" / "tuned", scores)
    for ends in ("", "/evaluation", "/evaluation/tuned", "/evaluation/tuned/samples.jsonl"):
        assert main(["compare", f"{tmp_path}/first{ends}", f"{tmp_path}/second{ends}"]) == 0
        assert "Too few items to tell: B is 50.0 points better" in capsys.readouterr().out


def test_what_is_no_evaluation_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = samples(tmp_path / "a", [1.0])
    assert main(["compare", a, str(tmp_path / "none")]) == 1
    assert "no samples.jsonl" in capsys.readouterr().err
    (tmp_path / "a" / "samples.jsonl").write_text('{"task": 1}\n')
    assert main(["compare", a, a]) == 1
    assert "samples.jsonl:1: not a sample" in capsys.readouterr().err
