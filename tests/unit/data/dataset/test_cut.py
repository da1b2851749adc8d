"""`data.too_long: cut`: a conversation ends behind the last turn that fits, in training, prepared folders and `show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from counterpoint.configs.errors import DataError
from counterpoint.configs.schema import DataSettings, PairSettings
from counterpoint.data.dataset.build import build_training_rows
from counterpoint.data.dataset.rows_on_disk import TrainingData
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.prepare.writer import Job, prepare
from counterpoint.recipes.cli import main


def conversation(turns: int, words: int = 20) -> dict[str, Any]:
    messages: list[dict[str, str]] = []
    for n in range(turns):
        messages.append({"role": "user", "content": f"question {n}"})
        messages.append(
            {"role": "assistant", "reasoning_content": f"thought {n}", "content": f"answer {n} " + "word " * words}
        )
    return {"messages": messages}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(conversation(turns)) + "\n" for turns in (2, 8)))
    return path


def build(path: Path, **data: Any) -> TrainingData:
    settings = DataSettings.model_validate({"train": str(path), "train_on": "assistant", **data})
    return build_training_rows(settings.train, settings, load_vocabulary())


def texts(data: TrainingData) -> list[str]:
    vocabulary = load_vocabulary()
    return [vocabulary.decode(row.ids) for row in data.rows]


@pytest.mark.parametrize("train_on", ["assistant", "last_turn"])
def test_a_long_conversation_ends_behind_the_last_turn_that_fits(rows: Path, train_on: str) -> None:
    full = build(rows, train_on=train_on)
    lengths = [len(row.ids) for row in full.rows]
    for kept in range(1, 8):
        alone = rows.with_name(f"alone-{kept}.jsonl")
        alone.write_text(json.dumps(conversation(kept)) + "\n")
        wanted = build(alone, train_on=train_on)
        limit = len(wanted.rows[0].ids)
        found = build(rows, train_on=train_on, too_long="cut", max_tokens=limit)
        # As if the file had ended there: the same ids, weights and last token.
        last = found.rows[-1]
        (only,) = wanted.rows
        assert list(last.ids) == list(only.ids)
        assert list(last.target_weight) == list(only.target_weight)
        assert limit < lengths[1]
        assert found.report.notices["cut"] == 1 + (lengths[0] > limit)
        assert not found.report.too_long
        less = build(rows, train_on=train_on, too_long="cut", max_tokens=limit - 1) if kept > 1 else None
        assert less is None or len(less.rows[-1].ids) < limit


def test_it_is_told_and_dropped_where_no_turn_fits(rows: Path, tmp_path: Path) -> None:
    dropped = build(rows, max_tokens=200)
    assert (dropped.report.too_long, len(dropped.rows)) == (1, 1)
    cut = build(rows, max_tokens=200, too_long="cut")
    assert (cut.report.too_long, len(cut.rows)) == (0, 2)
    assert "notice: cut: 1 rows" in cut.lines()
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps(conversation(2, words=500)) + "\n" + json.dumps(conversation(1)) + "\n")
    rest = build(long, max_tokens=200, too_long="cut")
    assert (rest.report.too_long, rest.report.notices["cut"], len(rest.rows)) == (1, 0, 1)


def test_where_it_would_change_nothing_it_is_refused() -> None:
    for train_on in ("turns", "final"):
        with pytest.raises(ValidationError, match=f"`too_long: cut` with `train_on: {train_on}` would change nothing"):
            DataSettings.model_validate({"train": "a", "train_on": train_on, "too_long": "cut"})
    with pytest.raises(ValidationError, match="a pair is compared whole: use `drop`"):
        PairSettings.model_validate({"train": "a", "too_long": "cut", "train_on": "last_turn"})


def test_under_turns_the_actions_that_fit_are_trained_without_it(rows: Path) -> None:
    limit = 200
    found = build(rows, train_on="turns", max_tokens=limit)
    assert found.report.examples + found.report.too_long == 2 + 8
    assert found.report.examples > 2
    assert found.report.too_long > 0


def test_a_prepared_folder_holds_what_the_run_would_cut(rows: Path, tmp_path: Path) -> None:
    settings = DataSettings.model_validate(
        {"train": str(rows), "train_on": "assistant", "too_long": "cut", "max_tokens": 200}
    )
    job = Job(options=settings, render=settings, max_tokens=200, cut=True)
    prepare(settings.train, tmp_path / "cut", job, workers=1)
    from_file = build(rows, too_long="cut", max_tokens=200)
    from_folder = build(tmp_path / "cut", too_long="cut", max_tokens=200)
    assert from_folder.fingerprint == from_file.fingerprint
    assert from_folder.report.notices["cut"] == 1
    for changes, told in (
        ({"too_long": "drop", "max_tokens": 200}, "with data.too_long: cut at 200 tokens, and the run's are not cut"),
        ({"too_long": "cut", "max_tokens": 300}, "cut at 200 tokens, and the run's are cut at 300"),
    ):
        with pytest.raises(DataError, match=told):
            build(tmp_path / "cut", **changes)
    prepare(settings.train, tmp_path / "whole", Job(options=settings, render=settings, max_tokens=200), workers=1)
    with pytest.raises(DataError, match=r"was prepared without data.too_long: cut, and the run's are cut at 200"):
        build(tmp_path / "whole", too_long="cut", max_tokens=200)


def test_the_commands_show_it(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file = tmp_path / "my.yaml"
    run_file.write_text(
        f"recipe: sft\nmodel: {{name: openai/gpt-oss-20b}}\ndata: {{train: {rows}, train_on: assistant, too_long: cut, max_tokens: 200}}\ntrain: {{device: cpu}}\n"
    )
    assert main(["show", "--config", str(run_file), str(rows), "--plain"]) == 0
    out = capsys.readouterr().out
    assert "to fit into data.max_tokens" in out
    assert "question 1" in out
    assert "question 7" not in out
    assert main(["prepare", str(rows), "--config", str(run_file), "--out", str(tmp_path / "out")]) == 0
    assert len(build(tmp_path / "out", too_long="cut", max_tokens=200).rows) == 2
