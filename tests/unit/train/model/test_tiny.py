"""The embedded model's parts belong together; `benchmarks/tiny_base.py check` makes it again."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from scripts import script

from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.tiny import WEIGHTS_FILE
from counterpoint.train.model.vocabulary_map import VocabularyMap


def test_map_and_shape_are_what_the_example_data_gives(tmp_path: Path) -> None:
    script("tiny_base.py").write_map(tmp_path)
    made, shipped = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tiny_folder()))
    assert {**made, "transformers_version": ""} == {**shipped, "transformers_version": ""}
    assert (tmp_path / "vocabulary_map.json").read_bytes() == (tiny_folder() / "vocabulary_map.json").read_bytes()


def test_the_weights_have_a_row_for_each_id() -> None:
    weights = load_file(tiny_folder() / WEIGHTS_FILE)
    assert len(weights["model.embed_tokens.weight"]) == VocabularyMap.load(tiny_folder()).n_rows
