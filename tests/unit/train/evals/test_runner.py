"""Evaluations that are cut short go on: nothing twice, nothing lost, the same samples as unbroken."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from forks import Forks, load

from counterpoint.configs.errors import DataError, RunError
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.evals.journal import SAMPLES, Journal, key_of, read_samples, saved_rows
from counterpoint.train.evals.runner import PLAN, Done, Shard, claim, run_plan
from counterpoint.train.evals.sampling_plan import groups, plan
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.scoring.scorers import Scorers

SCRIPT = str(Path(__file__).with_name("sampling_plan_run.py"))
N_DRAWS = 6 * 2 * 2 + 4 * 2

plan_run: Any = load(SCRIPT)


class BrokenError(Exception):
    """What a stand-in engine dies of."""


class Scripted:
    """Answers from the seed; dies at the `dies_at`-th group (from 1)."""

    def __init__(self, dies_at: int = 0) -> None:
        self.dies_at, self.calls = dies_at, 0

    def sample(
        self, prompts: Sequence[Any], n: int, temperature: float, seed: Any, stop_ids: Any = ()
    ) -> list[Sampled]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise BrokenError
        text = "<|channel|>final<|message|>{}<|return|>"
        return [Sampled(load_vocabulary().encode_with_specials(text.format(each % 100)), "stop") for each in seed]


def without_times(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def draws() -> list[Any]:
    return plan_run.draws()


def run_scripted(draws: list[Any], folder: Path, engine: Scripted, shard: Shard | None = None, **options: Any) -> Any:
    with Scorers() as scorers:
        identity = options.pop("identity", {"model": "a"})
        return run_plan(
            draws, engine, folder, load_vocabulary(), scorers, batch=8, identity=identity, shard=shard, **options
        )


def test_the_plan_is_fixed_and_seeds_depend_on_the_item_alone(draws: list[Any]) -> None:
    assert len(draws) == N_DRAWS
    assert draws == plan_run.draws()
    assert len({draw.seed for draw in draws}) == N_DRAWS
    tasks = [draws[0].task, draws[-1].task]
    from counterpoint.data.harmony.render import Renderer

    turned = plan(tasks[::-1], Renderer(load_vocabulary()), seed=5)
    assert {draw.key: draw.seed for draw in turned} == {draw.key: draw.seed for draw in draws}
    assert [len(group) for group in groups(draws, 8)] == [8, 8, 8, 8]
    assert [len(group) for group in groups(draws, 10)] == [10, 10, 4, 8], "a group has one limit"


def test_an_interrupted_evaluation_goes_on(draws: list[Any], tmp_path: Path) -> None:
    whole = run_scripted(draws, tmp_path / "whole", Scripted())
    for dies_at in (3, 1, 2):
        with pytest.raises(BrokenError):
            run_scripted(draws, tmp_path / "cut", Scripted(dies_at))
    told: list[Done] = []
    last = Scripted()
    rows = run_scripted(draws, tmp_path / "cut", last, progress=told.append)
    assert last.calls == 1, "three groups of four were kept"
    assert without_times(rows) == without_times(whole) == without_times(read_samples(tmp_path / "cut"))
    assert [(d.done, d.total, d.resumed) for d in told] == [(24, 32, 24), (32, 32, 24)]
    assert told[0].seconds_left is None
    assert told[-1].seconds_left == 0
    again = Scripted()
    assert without_times(run_scripted(draws, tmp_path / "cut", again)) == without_times(whole)
    assert again.calls == 0


@pytest.mark.parametrize("cut", [1, 20, 400])
@pytest.mark.parametrize("tail", [b"", b"\0" * 30, b'{"id": 1}\n', b"\n{"])
def test_a_half_written_line_is_drawn_again(draws: list[Any], tmp_path: Path, cut: int, tail: bytes) -> None:
    whole = run_scripted(draws, tmp_path, Scripted())
    path = tmp_path / SAMPLES
    path.write_bytes(path.read_bytes()[:-cut] + tail)
    engine = Scripted()
    assert without_times(run_scripted(draws, tmp_path, engine)) == without_times(whole)
    assert engine.calls == int(cut > 1 or tail != b"\n{")
    assert len(path.read_bytes().splitlines()) == N_DRAWS


def test_samples_of_a_cut_group_are_kept_as_they_were(draws: list[Any], tmp_path: Path) -> None:
    run_scripted(draws, tmp_path, Scripted())
    path = tmp_path / SAMPLES
    kept = path.read_bytes().splitlines(keepends=True)[:-3]
    path.write_bytes(b"".join(kept))
    run_scripted(draws, tmp_path, Scripted())
    assert path.read_bytes().splitlines(keepends=True)[:-3] == kept


def test_a_folder_belongs_to_one_plan(draws: list[Any], tmp_path: Path) -> None:
    run_scripted(draws, tmp_path, Scripted())
    with pytest.raises(RunError, match="another `model`"):
        run_scripted(draws, tmp_path, Scripted(), identity={"model": "b"})
    with pytest.raises(RunError, match="another `samples`"):
        run_scripted(draws[:-1], tmp_path, Scripted())
    (tmp_path / PLAN).unlink()
    with pytest.raises(RunError, match=PLAN):
        run_scripted(draws, tmp_path, Scripted())


@pytest.mark.parametrize("opened", [True, False])
def test_a_folder_without_samples_is_taken_by_another_plan(draws: list[Any], tmp_path: Path, opened: bool) -> None:
    """As of an evaluation that failed while its model loaded, or in its first samples."""
    claim(tmp_path, draws, {"model": "no such model"})
    if opened:
        with pytest.raises(BrokenError):
            run_scripted(draws, tmp_path, Scripted(dies_at=1), identity={"model": "b"})
    rows = run_scripted(draws, tmp_path, Scripted(), identity={"model": "c"})
    assert len(rows) == N_DRAWS
    assert json.loads((tmp_path / PLAN).read_text())["model"] == "c"


def test_a_folder_without_samples_is_not_taken_from_who_draws_them(draws: list[Any], tmp_path: Path) -> None:
    claim(tmp_path, draws, {"model": "a"})
    with Journal(tmp_path), pytest.raises(RunError, match="another evaluation is writing it"):
        claim(tmp_path, draws, {"model": "b"})
    assert json.loads((tmp_path / PLAN).read_text())["model"] == "a"


def test_two_processes_never_write_one_file(draws: list[Any], tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(RunError, match="another evaluation"):
        run_scripted(draws, tmp_path, Scripted())


def test_shards_are_merged_by_the_last_to_finish(draws: list[Any], tmp_path: Path) -> None:
    whole = run_scripted(draws, tmp_path / "whole", Scripted())
    folder = tmp_path / "shards"
    assert run_scripted(draws, folder, Scripted(), Shard(0, 3)) is None
    with pytest.raises(BrokenError):
        run_scripted(draws, folder, Scripted(1), Shard(2, 3))
    assert run_scripted(draws, folder, Scripted(), Shard(1, 3)) is None
    assert not (folder / SAMPLES).exists()
    rows = run_scripted(draws, folder, Scripted(), Shard(2, 3))
    assert without_times(rows) == without_times(whole)
    assert [path.name for path in folder.glob("samples*")] == [SAMPLES]


def test_shards_of_another_count_are_taken_over(draws: list[Any], tmp_path: Path) -> None:
    whole = run_scripted(draws, tmp_path / "whole", Scripted())
    folder = tmp_path / "shards"
    run_scripted(draws, folder, Scripted(), Shard(1, 3))
    engine = Scripted()
    assert without_times(run_scripted(draws, folder, engine)) == without_times(whole)
    assert engine.calls == 3, "one group of four was there"


def test_kill_9_three_times_then_the_same_as_unbroken(forks: Forks, tmp_path: Path) -> None:
    whole = plan_run.evaluate(tmp_path / "whole")
    folder = tmp_path / "killed"
    for fault in ("half:1", "unsynced:2"):
        assert forks.start(f"{SCRIPT}:forked", str(folder), fault, folder=tmp_path).wait() == -signal.SIGKILL
    before = len(saved_rows(folder))
    assert 8 <= before < N_DRAWS
    process = forks.start(f"{SCRIPT}:forked", str(folder), folder=tmp_path)
    while process.poll() is None and len(saved_rows(folder)) == before:
        time.sleep(0.002)
    process.send(signal.SIGKILL)
    process.wait()
    assert before < len(saved_rows(folder))
    rows = plan_run.evaluate(folder)
    assert without_times(rows) == without_times(whole)
    lines = (folder / SAMPLES).read_bytes().splitlines()
    assert len({key_of(json.loads(line)) for line in lines}) == len(lines) == N_DRAWS
    assert len({tuple(row["ids"]) for row in rows}) > N_DRAWS / 2, "a random model says many things"
    assert os.listdir(folder).count(SAMPLES) == 1


def test_what_is_no_evaluation_and_where_none_can_be_is_told(draws: list[Any], tmp_path: Path) -> None:
    file = tmp_path / SAMPLES
    file.write_text('{"task": "t", "id": "a", "effort": "low", "sample": 0}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl:1: not a sample"):
        read_samples(file)
    with pytest.raises(RunError, match="no folder can be made there"):
        run_scripted(draws, file, Scripted())
