"""Groups of rollouts that are sampled ahead: which, when, by which weights, and what is left after a kill."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_groups import (
    GROUP,
    GROUPS,
    STEPS,
    Pinned,
    Servers,
    fail_in_a_process,
    play_in_a_process,
    rollouts_of,
)

from counterpoint.configs.errors import RunError
from counterpoint.configs.reward_section import AnswerReward
from counterpoint.train.loop.group_journal import Journal
from counterpoint.train.loop.group_order import GroupOrder, Share
from counterpoint.train.loop.group_pipeline import ADAPTERS, Pipeline
from counterpoint.train.loop.group_player import EngineAt, ThreadPlayer
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.played import Played, read_played, write_played
from counterpoint.train.loop.rollout_process import RolloutProcess
from counterpoint.train.loop.step_order import StepOrder
from counterpoint.train.sampling.rollout import SampledRow
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.scoring.rewards import Rewards

# ---- the order


@given(st.integers(1, 5), st.integers(0, 4), st.booleans(), st.integers(1, 8), st.randoms(use_true_random=False))
def test_every_group_is_learned_from_once_and_is_no_older_than_the_window_lets_it(
    groups: int, staleness: int, windowed: bool, steps: int, draw: random.Random
) -> None:
    make = GroupOrder.windowed if windowed else GroupOrder
    order = make(groups, steps * groups, staleness)
    in_progress: dict[int, int] = {}
    taken: list[int] = []
    for step in range(steps):
        for number in order.published(step):
            in_progress[number] = order.version_of(number)
            assert order.version_of(number) <= step, "admitted once its version is published"
        while (batch := order.take()) is None:
            assert in_progress, "it waits for what is not in progress"
            number = draw.choice(sorted(in_progress))
            del in_progress[number]
            order.finished.add(number)
        assert all(step - order.version_of(number) <= order.most_age for number in batch)
        if not windowed:
            assert batch == list(range(step * groups, (step + 1) * groups))
            assert [order.version_of(n) for n in batch] == [max(0, step - staleness)] * groups
        taken += batch
    assert sorted(taken) == list(range(steps * groups))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_the_processes_units_are_the_rollouts_of_a_step(
    groups: int, group: int, processes: int, iterations: int, whole: bool
) -> None:
    order = StepOrder(groups * 2, groups, 0)
    if groups * group % processes:
        return
    for step in (0, 3):
        found, firsts = [], []
        for process in range(processes):
            share = Share(order, group, process, processes, iterations, whole)
            for number in range(step * share.units, (step + 1) * share.units):
                items, first, its_step, epoch = share.of(number)
                firsts.append(first)
                assert (its_step, epoch) == (step * iterations, order.of(step)[1])
                found += items
        assert found == [number for number in order.of(step)[0] for _ in range(group)]
        assert firsts == sorted(set(firsts))
        assert firsts[0] == 0


# ---- the journal


ROWS = st.lists(
    st.lists(
        st.tuples(st.lists(st.integers(0, 201_087), min_size=1), st.lists(st.integers(0, 9)), st.booleans()), max_size=3
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=25)
@given(ROWS, st.text())
def test_what_was_played_is_read_as_it_was_written(rows: list[Any], text: str) -> None:
    made = [
        tuple(
            SampledRow(
                ids,
                more,
                [n % 2 for n in more],
                [None if n == 3 else n / 7 for n in more] if told else None,
                np.full((len(ids), 2, 4), len(more), dtype=np.uint8) if told else None,
            )
            for ids, more, told in each
        )
        for each in rows
    ]
    played = Played(
        made, [True] * len(rows), [[0.1, 1 / 3]] * len(rows), [(1, 2, False)] * len(rows), [{"text": text}], [7],
        {"a": 1}, {"a": text}, {"judge": 3}, None, 1.5,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_played(Path(folder) / "a.npz", played, {"group": 1})
        found = read_played(Path(folder) / "a.npz")
    assert found == played
    for one, other in zip((row for e in found.rows for row in e), (row for e in made for row in e), strict=True):
        assert (one.routes is None) == (other.routes is None)
        assert one.routes is None or (one.routes == other.routes).all()


def test_only_entries_of_this_run_and_of_its_adapters_are_gone_on_with(tmp_path: Path) -> None:
    played = Played([()], [False], [[0.0]], [(1, 1, True)], [{}], [1])
    mine, other = Journal(tmp_path / "j", run="a"), Journal(tmp_path / "j", run="b")
    for number, (journal, version, adapter) in enumerate(
        [(mine, 0, "x0"), (mine, 0, "x0"), (mine, 0, "x0"), (mine, 1, "y1"), (other, 0, "x0"), (mine, 1, "x1")]
    ):
        journal.write(number, version, adapter, played)
    mine.path(6).write_bytes(mine.path(5).read_bytes()[:100])
    Journal(tmp_path / "j", 1, 2, "a").write(9, 0, "x0", played)
    assert mine.kept({2}, 1, ["x0", "x1"]) == [1, 5]
    assert sorted(path.name for path in (tmp_path / "j").iterdir()) == ["1-0-1.npz", "1-0-5.npz"]


# ---- scripted servers


class Versions:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def version_name(self, version: int) -> str:
        return f"v{version}"

    def adapter_folder(self, version: int) -> Path:
        folder = self.folder / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter").write_text(f"v{version}")
        return folder

    def adopt(self, version: int, folder: Path) -> None:
        assert (folder / "adapter").read_text() == f"v{version}"


def pipeline_of(folder: Path, rollouts: Rollouts, engine_at: EngineAt, staleness: int, run: str = "") -> Pipeline:
    share = Share(StepOrder(len(rollouts.items), GROUPS, 5), GROUP)
    order, journal = GroupOrder(share.units, STEPS * share.units, staleness), Journal(folder / f"journal{run}")
    player = ThreadPlayer(rollouts, share, journal, engine_at)
    return Pipeline(order, journal, player, Versions(folder / "engine"))


def batch(parts: list[Played]) -> list[Any]:
    return [(part.rows, part.scores, part.kept, part.lengths) for part in parts]


@pytest.mark.parametrize("staleness", [0, 2, 4])
def test_servers_that_fail_and_join_and_a_run_that_is_killed_change_no_batch(tmp_path: Path, staleness: int) -> None:
    with Rewards([AnswerReward(type="answer")]) as rewards:
        rollouts = rollouts_of(rewards)
        plain = pipeline_of(tmp_path, rollouts, Servers(False, random.Random(0)).at, staleness, "0")
        calm = [batch(plain.step(step)) for step in range(STEPS)]
        assert len({str(each) for each in calm}) == STEPS
        ages = [min(step, staleness) for step in range(STEPS)]
        assert calm[5][0][0][0][0].logprobs[0] == pytest.approx(-(5 - ages[5]), abs=0.9), "the version that sampled it"

        servers = Servers(True, random.Random(1))
        first = pipeline_of(tmp_path, rollouts, servers.at, staleness)
        assert [batch(first.step(step)) for step in range(3)] == calm[:3]
        first.fill_checkpoint(tmp_path / "checkpoint", 3)
        first.saved()
        state = first.state()
        assert batch(first.step(3)) == calm[3]
        assert first.measured["rollouts/age/max"] == min(3, staleness)
        first.close()
        assert servers.live == [0, 1, 3, 4, 6, 7, 8]
        versions = sorted(int(path.name) for path in (tmp_path / "checkpoint" / ADAPTERS).glob("*"))
        assert versions == list(range(max(0, 3 - staleness), 3))

        resumed = pipeline_of(tmp_path, rollouts, servers.at, staleness)
        resumed.restore(state, 0, 1, 3)
        resumed.adopt(tmp_path / "checkpoint")
        before = servers.asked
        assert [batch(resumed.step(step)) for step in range(3, STEPS)] == calm[3:]
        if staleness:
            assert servers.asked - before < (STEPS - 3) * GROUPS * GROUP, "what had finished is not sampled again"
        resumed.saved()
        assert not list((tmp_path / "journal").iterdir())


def test_what_ends_a_group_ends_the_step(tmp_path: Path) -> None:
    class Gone(Pinned):
        def sample(self, *args: Any, **more: Any) -> list[Sampled]:
            raise RunError("http://there/v1: status 400")

    with Rewards([AnswerReward(type="answer")]) as rewards:
        pipeline = pipeline_of(
            tmp_path, rollouts_of(rewards), lambda version, *_: Gone(Servers(False, random.Random()), version), 2
        )
        with pytest.raises(RunError, match="status 400"):
            pipeline.step(0)
        pipeline.close()


# ---- a process of its own


@pytest.mark.slow
def test_a_process_that_is_killed_is_started_again_and_a_group_that_kills_it_twice_is_given_up(tmp_path: Path) -> None:
    with Rewards([AnswerReward(type="answer")]) as rewards:
        rollouts = rollouts_of(rewards)
        share, journal = Share(StepOrder(7, GROUPS, 5), GROUP), Journal(tmp_path / "journal")
        process = RolloutProcess(play_in_a_process, tmp_path / "seen", rollouts, share, journal)
        try:
            for number in range(3):
                process.play(number, 0, "v0")
            assert sorted(process.wait() for _ in range(3)) == [0, 1, 2]
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.play(3, 1, "v1")
            assert process.wait() == 3
            process.play(4, 1, "poison")
            process.play(5, 1, "v1")
            assert sorted(process.wait() for _ in range(2)) == [4, 5]
        finally:
            process.close()
        assert [line.split()[1] for line in (tmp_path / "seen").read_text().splitlines()] == ["True"] * 4
        assert process.notices[0].startswith("the rollout process ended (signal 9): started again, ")
        servers = Servers(False, random.Random(0))
        for number, version in ((0, 0), (3, 1), (5, 1)):
            facts, played = journal.read(number)
            assert facts["adapter"] == f"v{version}"
            alone = rollouts.play(*share.of(number), servers.at(version, f"v{version}"))
            assert batch([played]) == batch([alone])
        (_, given_up) = journal.read(4)
        assert given_up.rows == [(), ()]
        why = "the rollout process ended 2 times while it was played (signal 9)"
        assert [row["invalid"] for row in given_up.kept] == [why] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "told"),
    [("mistake", "data.train: the prompts have changed"), ("end", "ended 2 times before it was ready")],
)
def test_a_process_that_cannot_begin_ends_the_run_in_one_line(tmp_path: Path, given: str, told: str) -> None:
    with Rewards([AnswerReward(type="answer")]) as rewards:
        share = Share(StepOrder(7, GROUPS, 5), GROUP)
        process = RolloutProcess(fail_in_a_process, given, rollouts_of(rewards), share, Journal(tmp_path / "journal"))
        try:
            process.play(0, 0, "v0")
            with pytest.raises((RunError, RuntimeError), match=told):
                process.wait()
        finally:
            process.close()
