"""Environments in `evaluate` and in the hook: the rollouts of training, with their rewards, on the same seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import RunError
from counterpoint.configs.eval_section import EnvironmentTask, EvalSettings
from counterpoint.configs.schema import SuiteSettings
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.episodes.environments import Environments
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.evals.hook import ChannelEval
from counterpoint.train.evals.results import cells
from counterpoint.train.evals.rollouts import RolloutPool, played
from counterpoint.train.evals.runner import run_plan
from counterpoint.train.evals.sampling_plan import Draw, fingerprint, plan
from counterpoint.train.evals.tasks import Task, build_tasks
from counterpoint.train.loop.grpo_items import items_of
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.sample import Sampler, sample_seed
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.environment_rows import load_rows
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference, Scorers

SAMPLED = RenderSettings(serving="sampled")
COUNTER = '''
from counterpoint import Environment

class Counter(Environment):
    def reset(self, row, ctx):
        self.count, self.world, self.row = 0, ctx.seed, row
        return f"Count to {row['target']}."

    def add(self) -> int:
        """Adds one."""
        self.count += 1
        return self.count

    def respond(self, final, ctx):
        return "Go on." if ctx.turn < self.row.get("turns", 1) else None

    def reward(self, rollout, ctx):
        if self.row.get("broken"):
            raise ValueError("broken")
        ids = sum(len(turn.completion.ids) for turn in rollout.turns)
        return {"solved": self.count == 2, "ids": ids, "world": self.world % 1000}
'''
CALL = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}<|call|>"
FINAL = "<|channel|>final<|message|>2<|return|>"


def task_settings(folder: Path, rows: Sequence[dict[str, Any]], **settings: Any) -> EnvironmentTask:
    (folder / "counter.py").write_text(COUNTER)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"type": "environment", "class": f"{folder / 'counter.py'}:Counter", "path": str(folder / "rows.jsonl")}
    return EnvironmentTask.model_validate({**given, "efforts": ["low"], **settings})


def tasks_of(settings: EnvironmentTask) -> list[Task]:
    return build_tasks(SuiteSettings(tasks=(settings,)))


def test_rows_need_no_prompt_and_keep_every_field(tmp_path: Path) -> None:
    rows = [{"target": 3, "id": "a"}, {"prompt": "Count.", "answer": "3", "user": {"mood": 1}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from counterpoint.configs.data_section import SourceSettings

    first, second = load_rows(SourceSettings(path=str(tmp_path / "rows.jsonl")))
    assert (first.id, first.conversation.messages, dict(first.conversation.metadata)) == ("a", (), rows[0])
    assert second.conversation.messages == (Message("user", "Count."),)
    assert (dict(second.conversation.metadata), second.reference.answer) == (rows[1], "3")


def test_two_samples_of_two_calls_count_for_themselves_in_evaluate(tmp_path: Path) -> None:
    """1 2 | 1 2, and what a line of samples.jsonl says of them."""
    (task,) = tasks_of(task_settings(tmp_path, [{"target": 2}], samples=2, scorer="solved"))
    vocabulary = load_vocabulary()
    renderer = Renderer(vocabulary, SAMPLED)
    draws = plan([task], renderer, 5)
    assert [draw.world for draw in draws] == [sample_seed(5, "world", "rows.jsonl:1", 0)] * 2
    stop = vocabulary.encode_with_specials("<|call|>")[0]
    engine = ScriptedEngine(vocabulary, lambda prompt, seed: CALL if prompt.count(stop) < 2 else FINAL)
    with Scorers() as scorers:
        rows = run_plan(
            draws, engine, tmp_path / "out", vocabulary, scorers, batch=8, identity={"model": "m"}, renderer=renderer
        )
    assert rows is not None
    for row in rows:
        assert [called["result"] for called in row["called"]] == ["1", "2"]
        world = draws[0].world % 1000
        assert row["rewards"] == {"solved": 1.0, "ids": row["rewards"]["ids"], "world": world}
        assert (row["score"], row["outcome"], row["ended"], row["turns"], row["invalid"]) == (
            1,
            "right",
            "return",
            1,
            None,
        )
        assert row["asked"] == "Count to 2."
    (cell,) = cells(rows)
    assert (cell.right.count, cell.right.n) == (2, 2)


def test_invalid_rollouts_are_shown_apart_and_too_many_end_it(tmp_path: Path) -> None:
    rows = [{"target": 2}] * 9 + [{"target": 2, "broken": True}]
    rows = [{**row, "id": str(k)} for k, row in enumerate(rows)]
    vocabulary = load_vocabulary()
    renderer = Renderer(vocabulary, SAMPLED)
    (task,) = tasks_of(task_settings(tmp_path, rows, scorer="solved"))
    engine = ScriptedEngine(vocabulary, [FINAL])
    draws = plan([task], renderer, 0)
    with RolloutPool() as pool, Scorers() as scorers:
        samples = played(draws, engine, renderer, pool, scorers)
        assert [s.score is None for s in samples] == [False] * 9 + [True]
        assert samples[9].more["invalid"].startswith("reward: ValueError: broken")
        with pytest.raises(RunError, match=r"task rows: 1 of 5 rollouts are invalid, more than max_invalid \(0.1\)"):
            played(draws[5:], engine, renderer, pool, scorers)


def test_what_an_evaluation_depends_on_is_in_its_fingerprint(tmp_path: Path) -> None:
    renderer = Renderer(load_vocabulary(), SAMPLED)

    def found(rows: list[dict[str, Any]], **settings: Any) -> str:
        return fingerprint(plan(tasks_of(task_settings(tmp_path, rows, **settings)), renderer, 0), {})

    first = found([{"target": 2}])
    assert found([{"target": 2}]) == first
    assert found([{"target": 3}]) != first
    assert found([{"target": 2}], settings={"a": 1}) != first
    draws = plan(tasks_of(task_settings(tmp_path, [{"target": 2}])), renderer, 0)
    (tmp_path / "counter.py").write_text(COUNTER + "\n# changed\n")
    assert fingerprint(draws, {}) != first


def test_training_hook_and_evaluate_reward_equal_seeds_alike(tmp_path: Path) -> None:
    """A real model over two turns, by the three ways."""
    loaded = random_tiny(seed=3)
    renderer = Renderer(loaded.vocabulary, SAMPLED)
    settings = task_settings(tmp_path, [{"target": k, "turns": 2, "id": str(k)} for k in range(3)], max_new_tokens=12)
    (task,) = tasks_of(settings)
    draws = plan([task], renderer, 5)
    with Scorers() as scorers:
        rows = run_plan(
            draws, Sampler(loaded), tmp_path / "out", loaded.vocabulary, scorers,
            batch=2, identity={}, renderer=renderer,
        )  # fmt: skip
    assert rows is not None
    evaluated = [row["rewards"] for row in rows]

    prompt = EvalPrompt("p", Conversation((Message("user", "Hello"),)), Reference(), None)
    chosen = EvalSettings(efforts=("low",), max_new_tokens=4, batch=7, base=False)
    hook = ChannelEval(loaded, renderer, [prompt], chosen, tmp_path / "eval", seed=5, tasks=[task])
    point = hook.measure(0, "tuned")
    assert point is not None
    lines = [json.loads(line) for line in (tmp_path / "eval" / "step-000000-tuned.jsonl").read_text().splitlines()]
    assert [line["rewards"] for line in lines if line["task"] == "rows"] == evaluated
    assert point.scalars()["rows/rewards/ids"] == sum(each["ids"] for each in evaluated) / 3
    assert "rows: solved 0.00 ids" in point.line()

    with Environments(settings) as environments, Rewards([], environment=True) as rewards:
        items = items_of(task.prompts, renderer, ("low",))
        rollouts = Rollouts(
            items, renderer, Sampler(loaded), rewards, EpisodeLimits(12), 1.0, 2, 5, environments=environments
        )
        episodes, _, _ = rollouts._sampled(
            items, [draw.seed for draw in draws], [rollouts._world(item, 0, 0, 0, False) for item in items], 1
        )
        assert [dict(episode.earned) for episode in episodes] == evaluated
        worlds = [rollouts._world(items[0], place, 3, 1, True).facts for place in range(4)]
        assert [facts.sample for facts in worlds] == [0, 1, 0, 1]
        assert len({facts.seed for facts in worlds}) == 1
        assert worlds[0].seed != rollouts._world(items[0], 0, 9, 2, True).facts.seed


def test_draws_of_an_environment_are_a_group_of_their_own(tmp_path: Path) -> None:
    from counterpoint.train.evals.sampling_plan import groups

    (task,) = tasks_of(task_settings(tmp_path, [{"target": 2}], max_new_tokens=512))
    other = Task("plain", (), ("low",), 1, 512, 1.0)
    draws = plan([task], Renderer(load_vocabulary(), SAMPLED), 0)
    plain = Draw(other, draws[0].prompt, "low", 0, 0, draws[0].prompt_ids)
    assert [len(group) for group in groups([*draws, plain], 8)] == [1, 1]
