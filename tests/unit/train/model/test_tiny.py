"""The embedded model's parts belong together, and its run file makes it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from counterpoint.recipes.cli import main
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.tiny import WEIGHTS_FILE, write_map
from counterpoint.train.model.vocabulary_map import VocabularyMap


def test_map_and_shape_are_what_the_example_data_gives(tmp_path: Path) -> None:
    write_map(tmp_path)
    made, shipped = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tiny_folder()))
    assert {**made, "transformers_version": ""} == {**shipped, "transformers_version": ""}
    assert (tmp_path / "vocabulary_map.json").read_bytes() == (tiny_folder() / "vocabulary_map.json").read_bytes()


def test_the_weights_have_a_row_for_each_id() -> None:
    weights = load_file(tiny_folder() / WEIGHTS_FILE)
    assert len(weights["model.embed_tokens.weight"]) == VocabularyMap.load(tiny_folder()).n_rows


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_run_file_makes_a_base_as_good_as_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are sampled greedily on prompts that they never saw: as often right in form, as often wrong in number."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "sft/tiny_base", "eval.temperature=0"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    remade = json.loads((run / "eval/metrics.jsonl").read_text().splitlines()[-1])
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] < 0.12
    assert main(["train", "quickstart", "train.steps=1", "eval.at_end=false"]) == 0
    (quick,) = (tmp_path / "runs").glob("quickstart-*")
    shipped = json.loads((quick / "eval/metrics.jsonl").read_text().splitlines()[0])
    assert (shipped["who"], shipped["step"]) == ("base", 0)
    assert abs(remade["channel_correct"] - shipped["channel_correct"]) < 0.2
    assert abs(remade["right_answers"] - shipped["right_answers"]) < 0.25
