"""Prepared folders as training data: the same rows as from the source, or a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from counterpoint.configs.errors import DataError
from counterpoint.configs.schema import DataSettings, SourceSettings
from counterpoint.data.dataset.build import build_training_rows
from counterpoint.data.dataset.rows_on_disk import TrainingData
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import RestrictedVocabulary, Vocabulary, byte_ids, load_vocabulary
from counterpoint.data.prepare.writer import Job, prepare
from counterpoint.data.prepared.source import is_prepared, read_prepared


def talk(n: int) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": f"question {n}"},
            {"role": "assistant", "reasoning_content": f"thought {n}", "content": "yes"},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "no", "weight": 0.5},
        ]
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(talk(n)) for n in range(20)]
    path.write_text("\n".join([*lines, '{"messages": [{"role": "user", "content": "only a question"}]}', "{"]) + "\n")
    return path


def made(source: Path, data: DataSettings | None = None, max_tokens: int | None = None) -> Path:
    data = data or settings(source)
    out = source.with_name("prepared")
    prepare([SourceSettings(path=str(source))], out, Job(options=data, render=data, max_tokens=max_tokens))
    return out


def settings(path: Path, **values: object) -> DataSettings:
    return DataSettings.model_validate({"train": [str(path)], "bad_rows_limit": 0.5, **values})


def rows(data: DataSettings, vocabulary: Vocabulary | None = None) -> TrainingData:
    return build_training_rows(data.train, data, vocabulary or load_vocabulary())


def test_examples_come_back_as_they_were(source: Path) -> None:
    renderer = Renderer(load_vocabulary())
    folder = made(source)
    expected = [
        e for item in read_conversations([str(source)]) if hasattr(item, "messages") for e in renderer.examples(item)
    ]  # pyright: ignore[reportArgumentType]
    found = list(read_prepared(folder))
    assert len(found) == len(expected) == 40
    for a, b in zip(found, expected, strict=True):
        assert (a.source, a.turn, a.notices) == (b.source, b.turn, b.notices)
        assert a.ids.tolist() == b.ids.tolist()
        assert a.weights.tolist() == b.weights.tolist()
        assert a.channels.tolist() == b.channels.tolist()


@pytest.mark.parametrize("values", [{}, {"pack_tokens": 1000, "max_tokens": 1000}, {"tree": False}, {"max_tokens": 86}])
def test_training_rows_equal_those_of_the_source(source: Path, values: dict[str, object]) -> None:
    folder = made(source)
    direct, prepared = rows(settings(source, **values)), rows(settings(folder, **values))
    assert prepared.fingerprint == direct.fingerprint
    if "max_tokens" in values:  # what was judged when it was prepared
        for name in ("actions", "bad_targets", "first_bad_targets"):
            setattr(prepared.report, name, getattr(direct.report, name))
    assert prepared.report == direct.report


def test_a_folder_that_an_older_version_wrote_is_read(source: Path) -> None:
    manifest = made(source) / "report.json"
    value = json.loads(manifest.read_bytes())
    for newer in ("kinds", "first_notices"):
        assert value["report"].pop(newer)
    manifest.write_text(json.dumps(value))
    direct, prepared = rows(settings(source)), rows(settings(manifest.parent))
    assert prepared.lines() == direct.lines()
    assert prepared.report.n_good == value["report"]["conversations"]


def test_weight_and_rows_of_the_source_hold(source: Path) -> None:
    folder = made(source)
    for part in ({"weight": 0.5}, {"weight": 2.0, "rows": 3}):
        fingerprints = []
        for path in (source, folder):
            data = settings(path)
            fingerprints.append(
                build_training_rows([SourceSettings(path=str(path), **part)], data, load_vocabulary()).fingerprint  # pyright: ignore[reportArgumentType]
            )
        assert fingerprints[0] == fingerprints[1]


def test_other_settings_or_vocabulary_are_refused_by_name(source: Path) -> None:
    folder = made(source)
    with pytest.raises(DataError, match=r"data\.weights\.analysis was 1\.0, now 0\.0\).*prepare it again"):
        rows(settings(folder, weights={"analysis": 0}))
    with pytest.raises(DataError, match=r'data\.text_beside_call was "preamble", now "analysis"'):
        rows(settings(folder, text_beside_call="analysis"))
    full = load_vocabulary()
    with pytest.raises(DataError, match=r"was prepared with vocabulary o200k_harmony:\w+, the model has o200k"):
        rows(settings(folder), RestrictedVocabulary(full, byte_ids(full)))


def test_examples_that_were_left_out_are_not_missed_in_silence(source: Path) -> None:
    folder = made(source, max_tokens=86)
    assert rows(settings(folder, max_tokens=86)).report.too_long == 20
    with pytest.raises(DataError, match=r"examples of more than 86 tokens were left out, but data.max_tokens is 8192"):
        rows(settings(folder))


def test_damage_is_found_before_training(source: Path) -> None:
    folder = made(source)
    shard = next(folder.glob("*.arrow"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DataError, match=f"{shard.name} is damaged: prepare it again"):
        rows(settings(folder))


def test_other_folders_are_not_taken_for_prepared_ones(tmp_path: Path) -> None:
    assert not is_prepared(str(tmp_path))
    (tmp_path / "report.json").write_text("{}")
    assert not is_prepared(str(tmp_path))
    with pytest.raises(DataError, match="not a folder of prepared data"):
        next(read_prepared(tmp_path))


def test_weights_of_any_size_keep_their_bits(source: Path) -> None:
    data = settings(source, weights={"analysis": 0.1, "final": 3.3})
    found = {float(w) for e in read_prepared(made(source, data)) for w in e.weights}
    assert {float(np.float32(0.1)), float(np.float32(3.3))} <= found


GOLDEN = Path(__file__).resolve().parents[3] / "golden"


def test_a_folder_of_the_first_version_is_trained_as_its_rows_are() -> None:
    """Written by the commit before serving forms: a line for each example, with other columns than today's."""
    forms = {"serving": "counterpoint_0_1"}
    before = rows(settings(GOLDEN / "prepared_1", **forms))
    now = rows(settings(GOLDEN / "prepared_1.jsonl", **forms))
    assert before.fingerprint == now.fingerprint
    assert [len(row) for row in before.rows] == [len(row) for row in now.rows] == [131, 175, 73]
    for ours, theirs in zip(now.rows, before.rows, strict=True):
        for name in ("ids", "position", "target_id", "target_weight", "target_channel"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    with pytest.raises(DataError, match=r"prepared by another version of the renderer: .* or set data\.serving: count"):
        rows(settings(GOLDEN / "prepared_1"))
