"""Tasks whose items are rolled out with tools, user's turns and rewards: in `evaluate`, in the hook and as in training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.configs.eval_section import EvalSettings
from counterpoint.configs.load import load_run
from counterpoint.configs.schema import SuiteSettings
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.evals.hook import ChannelEval
from counterpoint.train.evals.rollouts import RolloutPool, played
from counterpoint.train.evals.runner import run_plan
from counterpoint.train.evals.sampling_plan import fingerprint, groups, plan
from counterpoint.train.evals.tasks import Task, build_tasks
from counterpoint.train.loop.grpo_items import Item
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.model.load import load_model
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Scorers

VOCABULARY = load_vocabulary()
RENDERER = Renderer(VOCABULARY, RenderSettings(serving="sampled"))
CALCULATOR = "counterpoint.train.episodes.example_tools:calculator"
(STOP,) = VOCABULARY.encode_with_specials("<|call|>")


def call(expression: str) -> str:
    given = json.dumps({"expression": expression})
    return (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.calculator "
        f"<|constrain|>json<|message|>{given}<|call|>"
    )


def final(text: str) -> str:
    return f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{text}<|return|>"


def suite(folder: Path, rows: Sequence[dict[str, Any]], task: dict[str, Any] | None = None, **given: Any) -> list[Task]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"type": "file", "path": str(folder / "rows.jsonl"), "name": "sums", "efforts": ["low"], **(task or {})}
    return build_tasks(SuiteSettings.model_validate({"tasks": [own], **given}))


def sampled(folder: Path, tasks: Sequence[Task], engine: Any, seed: int = 0) -> list[dict[str, Any]]:
    with Scorers() as scorers:
        rows = run_plan(
            plan(tasks, RENDERER, seed), engine, folder / "out", VOCABULARY, scorers,
            batch=8, identity={}, renderer=RENDERER,
        )  # fmt: skip
    assert rows is not None
    return rows


SUMS = [{"prompt": f"What is {n} * 7?", "answer": n * 7, "id": str(n)} for n in range(3)]


def test_a_call_is_answered_and_the_final_after_it_scored(tmp_path: Path) -> None:
    tools = {"functions": [CALCULATOR]}
    tasks = suite(
        tmp_path, SUMS, {"tools": tools, "samples": 2}, rewards=[{"type": "answer"}, {"type": "calls", "weight": 0.5}]
    )
    assert [tool.name for tool in tasks[0].prompts[0].conversation.tools] == ["calculator"]
    asked = {n: VOCABULARY.encode(f"What is {n} * 7") for n in range(3)}

    def say(prompt: Sequence[int], seed: int) -> str:
        (n,) = [n for n, ids in asked.items() if " ".join(map(str, ids)) in " ".join(map(str, prompt))]
        if prompt.count(STOP) == 0:
            return call(f"{n} * 7" if n < 2 else "2 ** 7")
        return final(str(n * 7 if n != 1 else 8))

    rows = sampled(tmp_path, tasks, ScriptedEngine(VOCABULARY, say))
    by_id = {row["id"]: row for row in rows}
    assert {id: (row["score"], row["rewards"], row["reward"]) for id, row in by_id.items()} == {
        "0": (1, {"answer": 1, "calls": 1}, 1.5),
        "1": (0, {"answer": 0, "calls": 1}, 0.5),
        "2": (1, {"answer": 1, "calls": 0}, 1.0),
    }
    assert by_id["0"]["called"] == [{"name": "functions.calculator", "result": "0", "fault": None}]
    assert by_id["2"]["called"][0]["fault"] == "raised"
    assert [(row["turns"], row["ended"], row["invalid"]) for row in rows] == [(1, "return", None)] * 6


def test_the_turns_of_rows_and_of_the_setting_follow_a_final(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "6 * 7?",
            "answer": 42,
            "id": "own",
            "follow_ups": ["Sure?", {"content": "And half?", "answer": 21}],
        },
        {"prompt": "5 * 7?", "answer": 35, "id": "given"},
        {"prompt": "4 * 7?", "answer": 28, "id": "ends"},
    ]
    (task,) = suite(tmp_path, rows, {"follow_ups": ["Really?"]})
    assert [len(prompt.follow_ups) for prompt in task.prompts] == [2, 1, 1]
    said = {"6 *": ["42", "Yes.", "21"], "5 *": ["35", "36"], "4 *": ["28", None]}
    place = {key: [" ".join(map(str, VOCABULARY.encode(key)))] for key in said}
    (end,) = VOCABULARY.encode_with_specials("<|start|>")
    user = VOCABULARY.encode_with_specials("<|start|>user")

    def say(prompt: Sequence[int], seed: int) -> str:
        text = " ".join(map(str, prompt))
        (key,) = [key for key, (ids,) in place.items() if ids in text]
        turn = text.count(" ".join(map(str, user))) - 1
        return final(said[key][turn]) if said[key][turn] else "<|channel|>analysis<|message|>Hm.<|end|>"

    found = {row["id"]: row for row in sampled(tmp_path, [task], ScriptedEngine(VOCABULARY, say))}
    told = {
        id: (row["score"], row["turn_scores"], row["turns"], row["expected"]["answer"]) for id, row in found.items()
    }
    assert told == {
        "own": (1, [1, None, 1], 3, "21"),
        "given": (0, [None, 0], 2, "35"),
        "ends": (0, [None, 0], 2, "28"),
    }
    assert found["own"]["asked"] == "6 * 7?"
    assert [message["content"] for message in found["given"]["messages"] if message["role"] == "user"] == [
        "5 * 7?",
        "Really?",
    ]
    assert end


@pytest.mark.slow
def test_training_hook_and_evaluate_reward_a_tool_task_alike_for_equal_seeds(tmp_path: Path) -> None:
    """The embedded model, which calls the calculator and makes mistakes, by the three ways."""
    (tmp_path / "mine.py").write_text(
        "def talk(rollout):\n    return 0.01 * sum(len(m['content']) for m in rollout.messages)\n"
    )
    loaded = load_model("tiny")
    renderer = Renderer(loaded.vocabulary, RenderSettings(serving="sampled"))
    rows = [{"prompt": f"Multiply {n} by 7.", "answer": n * 7, "id": str(n)} for n in range(11, 17)]
    rewards = [
        {"type": "answer"},
        {"type": "channel"},
        {"type": "function", "function": f"{tmp_path / 'mine.py'}:talk"},
    ]
    given = {"tools": {"functions": [CALCULATOR]}, "rewards": rewards, "calls": 2, "completion_tokens": 96}
    (task,) = suite(tmp_path, rows, {"max_new_tokens": 40, "samples": 2}, **given)
    draws = plan([task], renderer, 5)
    with Scorers() as scorers:
        found = run_plan(
            draws,
            Sampler(loaded),
            tmp_path / "out",
            loaded.vocabulary,
            scorers,
            batch=5,
            identity={},
            renderer=renderer,
        )
    assert found is not None
    evaluated = [row["rewards"] for row in found]
    assert sum(len(row["called"]) for row in found) > 0
    assert len({reward["function"] for reward in evaluated}) > 4

    settings = EvalSettings(efforts=("low",), samples=2, batch=7, base=False)
    lines = {}
    for process in range(2):
        hook = ChannelEval(
            loaded,
            renderer,
            [],
            settings,
            tmp_path / f"eval{process}",
            seed=5,
            tasks=[task],
            process=process,
            processes=2,
        )  # what the other process draws is missing here
        lines |= {place: sample.more["rewards"] for place, sample in hook._share(0, "tuned", None)}
    assert [lines[place] for place in sorted(lines)] == evaluated

    with Toolkit([CALCULATOR]) as toolkit, Rewards(task.rollout.rewards if task.rollout else ()) as made:
        items = [Item(draw.prompt, draw.effort) for draw in draws]
        rollouts = Rollouts(items, renderer, Sampler(loaded), made, EpisodeLimits(40, 96, 2), 1.0, 2, 5, toolkit)
        worlds = [rollouts._world(item, 0, 0, 0, False) for item in items]
        episodes, outcomes, scored = rollouts._sampled(items, [draw.seed for draw in draws], worlds, 2)
        kept = [rollouts._row(*each) for each in zip(items, episodes, outcomes, scored, strict=True)]
    assert [row["rewards"] for row in kept] == evaluated


def test_prompts_of_the_hook_are_rolled_out_and_count_as_prompts(tmp_path: Path) -> None:
    loaded = load_model("tiny")
    renderer = Renderer(loaded.vocabulary, RenderSettings(serving="sampled"))
    (task,) = suite(tmp_path, SUMS, {"tools": {"functions": [CALCULATOR]}, "max_new_tokens": 24})
    settings = EvalSettings(efforts=("low",), base=False)
    hook = ChannelEval(loaded, renderer, [], settings, tmp_path / "eval", rolled=task)
    point = hook.measure(0, "tuned")
    assert point is not None
    assert (point.summary.correct.n, point.summary.right_answers.n) == (3, 3)
    assert {"sums/turns", "sums/calls", "sums/score", "right_answers"} <= point.scalars().keys()


def test_a_group_is_handed_to_its_reward_whole_whatever_the_batch(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def first(rollouts):\n    return [float(len(rollouts))] * len(rollouts)\n")
    reward = {"type": "function", "function": f"{tmp_path / 'mine.py'}:first", "per": "group", "name": "size"}
    tasks = suite(tmp_path, SUMS, {"samples": 3}, rewards=[reward])
    draws = plan(tasks, RENDERER, 0)
    assert [len(group) for group in groups(draws, 4)] == [3, 3, 3]
    assert [len(group) for group in groups(draws, 2)] == [3, 3, 3]
    rows = sampled(tmp_path, tasks, ScriptedEngine(VOCABULARY, [final("0")]))
    assert [row["rewards"]["size"] for row in rows] == [3.0] * 9


def test_a_reward_that_fails_makes_its_rollout_invalid(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def fails(rollout):\n    return 1 / (int(rollout.id) - 3)\n")
    rows = [{"prompt": f"{n}?", "answer": 1, "id": str(n)} for n in range(12)]
    tasks = suite(tmp_path, rows, rewards=[{"type": "function", "function": f"{tmp_path / 'mine.py'}:fails"}])
    engine = ScriptedEngine(VOCABULARY, [final("1")])
    draws = plan(tasks, RENDERER, 0)
    with RolloutPool() as pool, Scorers() as scorers:
        samples = played(draws, engine, RENDERER, pool, scorers)
        assert [sample.score is None for sample in samples] == [n == 3 for n in range(12)]
        assert samples[3].more["invalid"].startswith("reward function: ZeroDivisionError")
        assert samples[3].more["reward"] is None
        with pytest.raises(RunError, match=r"task sums: 1 of 6 rollouts are invalid, more than max_invalid \(0.1\)"):
            played(draws[:6], engine, RENDERER, pool, scorers)


@pytest.mark.slow
def test_files_of_tools_and_rewards_turns_and_limits_are_in_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def add(a: int) -> int:\n    return a\n\ndef good(rollout):\n    return 1.0\n")

    def found(task: dict[str, Any] | None = None, **given: Any) -> str:
        return fingerprint(plan(suite(tmp_path, SUMS, task, **given), RENDERER, 0), {})

    tools = {"functions": [f"{tmp_path / 'mine.py'}:add"], "seconds": 60}
    function = [{"type": "function", "function": f"{tmp_path / 'mine.py'}:good"}]
    first, rewarded = found(tools=tools), found(rewards=function)
    assert found(rewards=function) == rewarded
    others = [
        found(), found({"follow_ups": ["Sure?"]}), found({"follow_ups": ["Really?"]}),
        found(rewards=[{"type": "channel"}]), found(tools={**tools, "seconds": 50}, calls=3),
    ]  # fmt: skip
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "\n# changed\n")
    others += [found(tools=tools), found(rewards=function)]
    assert len({first, rewarded, *others}) == 2 + len(others)


@pytest.mark.parametrize(
    ("task", "given", "told"),
    [
        ({"calls": 2}, {}, "task sums: calls: no tool is run in it"),
        ({"completion_tokens": 9}, {}, "task sums: completion_tokens: its items are answered at once"),
        ({"rewards": ["answr"]}, {"rewards": [{"type": "answer"}]}, "task sums: rewards: none of `eval.rewards` is named `answr`: take of answer"),
        ({"tools": []}, {"tools": {"functions": [CALCULATOR]}}, "eval.tools: nothing takes them"),
        ({}, {"rewards": [{"type": "answer", "scorer": "schema"}]}, "task sums: reward answer: no row has a truth for it"),
        ({}, {"tools": {"functions": ["counterpoint.train.episodes.example_tools:none"]}}, "has no attribute 'none'"),
        ({}, {"rewards": [{"type": "function", "function": "a.py:f", "per": "step"}]}, "reward function: `per: step` is of training"),
    ],
)  # fmt: skip
def test_what_cannot_be_rolled_out_is_told_before_anything_is_sampled(
    tmp_path: Path, task: dict[str, Any], given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as error:
        suite(tmp_path, SUMS, task, **given)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_is_evaluated_with_what_it_learned_with_and_no_code_of_its_own(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from counterpoint.recipes.commands.evaluate_run import of_run

    def of(run: Any, *given: str) -> Any:
        found: Any = SimpleNamespace(run=run)
        return of_run(load_run("eval/channels", given), found)

    (tmp_path / "held.jsonl").write_text(json.dumps(SUMS[0]) + "\n")
    valid = f"data.valid=[{{type: file, path: {tmp_path / 'held.jsonl'}}}]"
    run = load_run("grpo/tiny_calculator", [valid])
    found = of(run)
    asked, held = found.settings.eval.tasks
    assert (asked.path, held.path, found.inherited) == ("example:products_eval", str(tmp_path / "held.jsonl"), True)
    assert (held.max_new_tokens, found.settings.eval.calls, found.settings.eval.completion_tokens) == (64, 2, 192)
    assert [task.rollout is not None for task in build_tasks(found.settings.eval, inherited=True)] == [True, True]
    assert found.notices == ()
    assert [reward.type for reward in found.settings.eval.rewards] == ["answer", "calls", "channel"]

    foreign = of(load_run("grpo/tiny_calculator", ["tools.functions=mine.py:f"]))
    assert foreign.settings.eval.tools is None
    assert foreign.notices[0].endswith("add eval.tools.functions=mine.py:f")
    assert "learned with tools (mine.py:f), and nothing is measured with them" in foreign.notices[1]
    named = of(run, "eval.tasks=[{type: arithmetic}]")
    assert named.settings.eval.tools is None
    assert "nothing is measured with them: set eval.tools" in named.notices[0]
    played = of(load_run("grpo/tiny_counter", [valid]))
    assert [task.type for task in played.settings.eval.tasks] == ["file", "environment"]
    assert played.settings.eval.tasks[1].calls == load_run("grpo/tiny_counter").rollout.calls
