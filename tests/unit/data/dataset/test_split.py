"""A share of the rows is held out by prompt and seed, and rows that stand on both sides are told and kept on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from counterpoint.configs.errors import DataError
from counterpoint.configs.preference_section import DpoSettings
from counterpoint.configs.schema import DataSettings, PairSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.dataset.build import TrainingSets, build_training_rows, build_training_sets
from counterpoint.data.dataset.pair_sets import PairSets, build_pair_sets
from counterpoint.data.dataset.row_keys import keys_of
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.prepare.writer import Job, prepare


def row(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [{"role": "system", "content": system}, *said] if system else said}


ROWS = [row(f"question {n // 2}", f"answer {n}") for n in range(200)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def build(train: Any, valid: Any, seed: int = 0, **values: Any) -> TrainingSets:
    data = DataSettings.model_validate({"train": train, "valid": valid, **values.pop("data", {})})
    return build_training_sets(data, load_vocabulary(), seed=seed, **values)


def ids(rows: Any) -> list[bytes]:
    return [each.ids.tobytes() for each in rows]


def test_a_share_is_held_out_by_prompt_and_seed_whatever_the_order(tmp_path: Path) -> None:
    """Every prompt has two answers."""
    path, back = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", ROWS[::-1])
    sets, again, other = (build(str(p), "10%", seed) for p, seed in ((path, 3), (back, 3), (path, 4)))
    held, trained = ids(sets.held_out[""].rows), ids(sets.train.rows)
    assert len(held) + len(trained) == 200
    assert 6 <= len(held) <= 40
    assert sorted(ids(again.held_out[""].rows)) == sorted(held)
    assert sorted(ids(other.held_out[""].rows)) != sorted(held)
    assert sets.lines[0].startswith(f"{len(held)} of 200 rows ({len(held) / 200:.1%}) are held out by data.valid: 10%")
    sources = {int(source.rpartition(":")[2].partition("#")[0]) for r in sets.held_out[""].rows for source in r.sources}
    assert all({n - 1 + n % 2, n + n % 2} <= sources for n in sources)
    everything = build_training_rows(
        DataSettings(train=str(path)).train, DataSettings(train=str(path)), load_vocabulary()
    )  # pyright: ignore[reportArgumentType]
    assert trained == [each for each in ids(everything.rows) if each not in held]


def test_rows_that_come_later_move_none(tmp_path: Path) -> None:
    first = build(str(write(tmp_path / "a.jsonl", ROWS)), "10%")
    more = build(str(write(tmp_path / "b.jsonl", [row(f"more {n}", "yes") for n in range(50)] + ROWS)), "10%")
    assert set(ids(first.held_out[""].rows)) <= set(ids(more.held_out[""].rows))


def test_prepared_rows_are_split_alike_and_a_row_taken_twice_is_held_out_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    data = DataSettings.model_validate({"train": str(path)})
    prepare(data.train, tmp_path / "p", Job(options=data, render=data))
    plain, prepared = build(str(path), "10%"), build(str(tmp_path / "p"), "10%")
    twice = build([{"path": str(path), "weight": 2}], "10%")
    assert ids(plain.held_out[""].rows) == ids(prepared.held_out[""].rows) == ids(twice.held_out[""].rows)
    assert prepared.train.fingerprint == plain.train.fingerprint
    assert len(twice.train.rows) == 2 * len(plain.train.rows)


def test_one_prompt_at_least_is_on_each_side(tmp_path: Path) -> None:
    few = build(str(write(tmp_path / "a.jsonl", ROWS[:6])), "1%")
    assert (len(few.held_out[""].rows), len(few.train.rows)) == (2, 4)
    with pytest.raises(DataError, match=r"data\.valid: all rows have the same prompt.*name a file"):
        build(str(write(tmp_path / "b.jsonl", ROWS[:2])), "50%")


@pytest.mark.parametrize(
    ("valid", "told"),
    [
        ("0%", "more than 0% and at most 50%"),
        ("60%", "more than 0% and at most 50%"),
        (["2%", "a.jsonl"], "stands alone"),
        ({"path": "2%", "rows": 5}, "stands alone"),
    ],
)
def test_shares_that_make_no_sense(valid: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DataSettings.model_validate({"train": "a.jsonl", "valid": valid})


def test_rows_on_both_sides_are_told_and_held_out(tmp_path: Path) -> None:
    train = str(write(tmp_path / "a.jsonl", ROWS))
    valid = str(write(tmp_path / "v.jsonl", [row("new", "yes"), *ROWS[3:8]]))
    found = build(train, valid)
    assert (len(found.train.rows), len(found.held_out[""].rows)) == (195, 6)
    assert found.lines == [
        f"5 rows stand in data.train and in the held-out data alike ({train}:4 = {valid}:2, {train}:5 = {valid}:3, "
        f"{train}:6 = {valid}:4, ...): kept there and left out of training (data.overlap)"
    ]
    trained = build(train, valid, data={"overlap": "train"})
    assert (len(trained.train.rows), len(trained.held_out[""].rows)) == (200, 1)
    both = build(train, valid, data={"overlap": "both"})
    assert (len(both.train.rows), len(both.held_out[""].rows)) == (200, 6)
    assert both.lines[0].endswith("on both sides (data.overlap: both)")
    alike = build(train, [train])
    assert (len(alike.train.rows), len(alike.held_out[""].rows)) == (200, 200)
    assert alike.lines[0].endswith("that is all that is trained, so they stay on both sides")
    with pytest.raises(DataError, match="nothing is left to hold out"):
        build(train, train, data={"overlap": "train"})


def test_rows_whose_prompt_the_evaluation_samples(tmp_path: Path) -> None:
    asked = convert({"messages": ROWS[4]["messages"][:1]})
    assert isinstance(asked, Conversation)
    found = build(str(write(tmp_path / "a.jsonl", ROWS)), (), evaluation={keys_of(asked).asked: "probe-1"})
    assert len(found.train.rows) == 198
    assert "2 rows stand in data.train and in the evaluation's prompts alike" in found.lines[0]
    assert f"{tmp_path}/a.jsonl:5 = probe-1" in found.lines[0]


def test_rows_are_told_apart_by_what_they_say() -> None:
    def keys(value: dict[str, Any]) -> tuple[int, int, int]:
        found = convert(value)
        assert isinstance(found, Conversation)
        return keys_of(found)

    one = keys(row("a", "b"))
    assert keys(row(" a ", "b\n")) == one == keys({"instruction": "a", "output": "b"})
    assert keys(row("a", "c"))[:2] == one[:2]
    assert keys(row("a", "c"))[2] != one[2]
    assert not set(keys(row("a", "b", "Be kind."))) & {*one}


def test_pairs_are_split_and_kept_apart_alike(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {n // 2}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(100)]
    train, valid = (
        str(write(tmp_path / "a.jsonl", rows)),
        str(write(tmp_path / "v.jsonl", [*rows[:3], rows[0] | {"chosen": "new"}])),
    )

    def pairs(**values: Any) -> PairSets:
        return build_pair_sets(PairSettings.model_validate(values), DpoSettings(), load_vocabulary(), seed=0)

    whole, split = pairs(train=train), pairs(train={"path": train, "weight": 2}, valid="10%")
    held, trained = split.held_out[""].pairs, split.train.pairs
    assert 2 * len(held) + len(trained) == 200
    assert {tuple(pair.prompt_ids) for pair in held}.isdisjoint(tuple(pair.prompt_ids) for pair in trained)
    assert len({tuple(pair.prompt_ids) for pair in held}) * 2 == len(held)
    assert split.lines[0].startswith(f"{2 * len(held)} of 200 pairs")
    apart = pairs(train=train, valid=valid)
    assert (len(apart.train.pairs), len(apart.held_out[""].pairs)) == (97, 4)
    assert apart.train.fingerprint != whole.train.fingerprint
    assert f"3 rows stand in data.train and in the held-out data alike ({train}:1 = {valid}:1" in apart.lines[0]
    both = pairs(train=train, valid=valid, overlap="both")
    assert (len(both.train.pairs), len(both.held_out[""].pairs)) == (100, 4)
