"""Packages behind a bridge: what they ask, what they give, and what becomes of their faults. The bridge here is a script
that speaks the protocol; the real packages are in test_real_packages.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from json_server import serving_json

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.environment_section import EnvironmentSettings, UserSettings
from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.configs.foreign_section import ForeignSettings
from counterpoint.configs.schema import SuiteSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.recipes.cli import main
from counterpoint.train.episodes.environment_worker import Facts
from counterpoint.train.episodes.environments import Environments
from counterpoint.train.episodes.episodes import EpisodeLimits, World, run_episodes
from counterpoint.train.episodes.routes import Routes
from counterpoint.train.evals.rollouts import RolloutPool, played
from counterpoint.train.evals.sampling_plan import plan
from counterpoint.train.evals.tasks import build_tasks
from counterpoint.train.foreign.bridge import installed, listed_tasks
from counterpoint.train.foreign.environments import ForeignEnvironments
from counterpoint.train.loop.grpo_items import Item
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.run.first_sight import FirstSight
from counterpoint.train.sampling.rollout import Episode
from counterpoint.train.sampling.sample import SamplingStoppedError
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.environment_rows import row_prompt
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Scorers

EXAMPLES = "counterpoint.train.episodes.example_environments"
VOCABULARY = load_vocabulary()
RENDERER = Renderer(VOCABULARY, RenderSettings(serving="sampled"))
BRIDGE = """
import json, os, sys, time, urllib.request
sys.path.insert(0, os.environ["COUNTERPOINT_BRIDGES"])
from lines import main

def ask(place, messages, **more):
    body = json.dumps({"model": place.model, "messages": messages, "temperature": 0, **more}).encode()
    head = {"Authorization": f"Bearer {place.api_key}", "X-Session-ID": "player"}
    with urllib.request.urlopen(urllib.request.Request(place.base_url + "/chat/completions", body, head)) as reply:
        return json.load(reply)["choices"][0]["message"]

class Sums:
    def __init__(self, settings):
        self.settings = settings
    def tasks(self, most):
        return [{"task": n, "id": f"sum {n}"} for n in range(min(most, 3))]
    def play(self, job):
        row = job.task
        if row.get("broken"):
            raise ValueError("a broken world")
        if row.get("dies"):
            os._exit(3)
        if row.get("hangs"):
            time.sleep(60)
        print("noise on standard output")
        messages = [{"role": "user", "content": f"{row['task']} + {self.settings.get('plus', 1)}?"}]
        for _ in range(row.get("again", 0)):
            ask(job, messages)
        tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
        message = ask(job, messages, tools=tools)
        while message.get("tool_calls"):
            result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "2"}
            messages += [message, result]
            message = ask(job, messages, tools=tools)
        if row.get("user"):
            messages += [message, ask(job.user, [{"role": "user", "content": "Play a user."}])]
            messages[-1]["role"] = "user"
            message = ask(job, messages, tools=tools)
        if not message["content"]:
            raise RuntimeError("an empty message")
        earned = float("2" in message["content"]), {"seed": job.seed, "asked": len(messages)}
        if row.get("sessions"):
            head = {"Authorization": f"Bearer {job.api_key}", "X-Session-ID": "judge"}
            body = json.dumps({"messages": [{"role": "user", "content": "Judge!"}]}).encode()
            urllib.request.urlopen(urllib.request.Request(job.base_url + "/chat/completions", body, head)).close()
            return (*earned, ["player"])
        return earned

if __name__ == "__main__":
    main(lambda id, settings: Sums(settings), "pip")
"""
CALL = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}<|call|>"
FINAL = "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>2<|return|>"


@pytest.fixture
def bridge(tmp_path: Path) -> Path:
    path = tmp_path / "sums_bridge.py"
    path.write_text(BRIDGE)
    return path


def settings_of(bridge: Path, **changes: Any) -> ForeignSettings:
    return ForeignSettings.model_validate({"type": "script", "id": str(bridge), "python": sys.executable, **changes})


def play(
    environments: ForeignEnvironments | Routes[Any], rows: Sequence[dict[str, Any]], script: Any, **options: Any
) -> list[Episode]:
    worlds = [World(row, str(n), Facts(seed=77)) for n, row in enumerate(rows)]
    return run_episodes(
        [Conversation((), metadata=row) for row in rows],
        RENDERER,
        ScriptedEngine(VOCABULARY, script),
        efforts=["low"] * len(rows),
        environments=environments,
        worlds=worlds,
        **options,
    )


def after_a_result(prompt: list[int], seed: int) -> str:
    return FINAL if "to=assistant" in VOCABULARY.decode(prompt) else CALL


def test_a_package_asks_and_rewards_and_its_rows_are_the_sampled_ids(bridge: Path) -> None:
    with ForeignEnvironments("script", settings_of(bridge, weights={"asked": 0.5})) as environments:
        assert environments.ready.startswith("pip ")
        (episode,) = play(environments, [{"task": 1}], after_a_result)
        assert episode.stop == "return"
        assert episode.earned == {"": 1.0, "seed": 77.0, "asked": 3.0}
        assert environments.weigh(episode.earned) == 1.0 + 0.5 * 3
        sampled = [id_ for id_, mark in zip(episode.completion_ids, episode.env_mask, strict=True) if mark]
        assert VOCABULARY.decode(sampled) == CALL + FINAL
        masked = [id_ for id_, mark in zip(episode.completion_ids, episode.env_mask, strict=True) if not mark]
        result = "<|start|>functions.add to=assistant<|channel|>commentary<|message|>2<|end|><|start|>assistant"
        assert VOCABULARY.decode(masked) == result
        assert [(called.call.name, called.result.content) for called in episode.called] == [("add", "2")]
        assert episode.requests == {"requests": 2, "overridden/temperature": 2, "orphans": 0}
        roles = [message["role"] for message in episode.messages]
        assert roles == ["user", "assistant", "assistant", "tool", "assistant", "assistant"]


def test_retries_and_a_played_user_are_not_learned_from(bridge: Path) -> None:
    def script(prompt: list[int], seed: int) -> str:
        return FINAL.replace("2", "Hello!") if "Play a user" in VOCABULARY.decode(prompt) else FINAL

    with ForeignEnvironments("script", settings_of(bridge)) as environments:
        (episode,) = play(environments, [{"task": 1, "again": 2, "user": True}], script)
        assert episode.turn == 1
        assert len(episode.turns) == 2
        assert episode.requests["orphans"] == 2
        assert VOCABULARY.decode(episode.prompt_ids).endswith("user<|message|>Hello!<|end|><|start|>assistant")
        assert VOCABULARY.decode(episode.completion_ids) == FINAL


def test_other_sessions_of_the_endpoint_are_not_learned_from(bridge: Path) -> None:
    with ForeignEnvironments("script", settings_of(bridge)) as environments:
        (episode,) = play(environments, [{"task": 1, "sessions": True}], after_a_result)
        assert "Judge!" not in VOCABULARY.decode(episode.prompt_ids)
        assert len(episode.called) == 1
        assert episode.requests["requests"] == 3
        assert episode.turn == 0


def test_rows_name_a_package_beside_a_class(bridge: Path) -> None:
    own = EnvironmentSettings.model_validate({"class": f"{EXAMPLES}:Calculator", "isolation": "shared"})
    with ForeignEnvironments("script", settings_of(bridge)) as sums, Environments(own) as calculators:
        routes = Routes({"sums": sums, "keys": calculators})
        rows = [{"task": 1, "environment": "sums"}, {"target": 7, "environment": "keys"}]
        package, of_class = play(routes, rows, after_a_result)
        assert package.earned[""] == 1.0
        assert package.requests["requests"] == 2
        assert of_class.requests == {}
        assert of_class.invalid is not None
        assert of_class.invalid.startswith("reset returned None, and the row has no prompt of its own")


def test_faults_make_their_own_rollout_invalid(bridge: Path) -> None:
    rows = [{"task": 1}, {"task": 1, "broken": True}, {"task": 1, "again": 9}, {"task": 1}]
    with ForeignEnvironments("script", settings_of(bridge, requests=8)) as environments:
        good, broken, many, last = play(environments, rows, after_a_result)
        assert (good.earned, last.earned) == ({"": 1.0, "seed": 77.0, "asked": 3.0},) * 2
        assert broken.invalid is not None
        assert broken.invalid.startswith(f"script `{bridge}`: ValueError: a broken world\nTraceback")
        assert broken.stop == "invalid"
        assert sum(broken.env_mask) == sum(many.env_mask) == 0
        assert many.invalid == "more than 8 requests to the model: raise `requests`, or end the package sooner"


def test_what_the_model_broke_earns_nothing_and_counts(bridge: Path) -> None:
    with ForeignEnvironments("script", settings_of(bridge)) as environments:
        (episode,) = play(environments, [{"task": 1}], ["<|channel|>final<|message|>It is"])
        assert (episode.stop, episode.invalid, episode.earned) == ("length", None, {"": 0.0})
        assert sum(episode.env_mask) == len(episode.completion_ids) > 0
        assert episode.requests["broken"] == 1


def test_a_process_that_dies_takes_its_rollouts_and_the_next_gets_another(bridge: Path) -> None:
    with ForeignEnvironments("script", settings_of(bridge)) as environments:
        (dead,) = play(environments, [{"task": 1, "dies": True}], after_a_result)
        assert dead.invalid is not None
        assert dead.invalid.startswith(f"script `{bridge}`: its process died (exit code 3)")
        (good,) = play(environments, [{"task": 1}], after_a_result)
        assert good.earned[""] == 1.0


def test_a_package_that_hangs_is_left_and_replaced(bridge: Path) -> None:
    with ForeignEnvironments("script", settings_of(bridge, seconds=1)) as environments:
        hung, good = play(environments, [{"task": 1, "hangs": True}, {"task": 1}], after_a_result)
        assert good.earned[""] == 1.0
        assert hung.invalid is not None
        assert hung.invalid.startswith(f"script `{bridge}`: no request and no reward within 1 s")
        first = environments._bridges[0]
        play(environments, [{"task": 1}], after_a_result)
        assert environments._bridges[0] is not first
        assert first is not None
        assert first.gone


def test_a_run_that_stops_waits_for_no_package(bridge: Path) -> None:
    with ForeignEnvironments("script", settings_of(bridge)) as environments, pytest.raises(SamplingStoppedError):
        play(environments, [{"task": 1, "hangs": True}], after_a_result, stops=lambda: True)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ImportError('no such package')", "its process died while it was loaded: Traceback"),
        ("from time import sleep; sleep(60)", "it was not loaded within 1 s (`seconds`)"),
        (
            BRIDGE.replace("lambda id, settings: Sums(settings)", "lambda id, settings: settings['x']"),
            "KeyError: 'x'",
        ),
    ],
)
def test_a_package_that_cannot_be_loaded_is_reported(bridge: Path, code: str, told: str) -> None:
    bridge.write_text(code)
    with pytest.raises(ConfigError) as error:
        ForeignEnvironments("script", settings_of(bridge, seconds=1))
    assert str(error.value).startswith(f"environment script `{bridge}`: {told}")


def test_paths_that_are_not_there_are_reported(bridge: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="python: venv/bin/python: there is no such program"):
        installed("venv/bin/python")
    with pytest.raises(ConfigError, match="there is no such file: give the script of your bridge"):
        listed_tasks("script", settings_of(tmp_path / "nothing.py"), 1)


@pytest.mark.slow
def test_its_tasks_are_an_evaluation(bridge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = {"type": "script", "id": "sums_bridge.py", "python": sys.executable, "size": 2, "name": "sums"}
    run = {"recipe": "evaluate", "device": "cpu"}
    run["eval"] = {"base": False, "efforts": ["low"], "max_new_tokens": 16, "tasks": [task]}
    Path("run.yaml").write_text(json.dumps(run))
    command = ["evaluate", "tiny", "--config", "run.yaml", "--out", "out"]
    assert main(command) == 0
    rows = [json.loads(line) for line in Path("out/tuned/samples.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["sum 0", "sum 1"]
    assert all(row["invalid"] is None and row["requests"]["requests"] == 1 for row in rows)
    assert main(command) == 0  # it is all there
    bridge.write_text(BRIDGE + "\n# another version\n")
    assert main(command) == 1


def test_settings_of_a_task_act(bridge: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"task": 1}\n{"task": 2, "broken": true}\n')
    given = {"type": "script", "id": str(bridge), "python": sys.executable, "path": str(rows), "efforts": ["low"]}
    given |= {"settings": {"plus": 5}, "workers": 2, "weights": {"asked": 0.25}, "max_invalid": 0.5, "scorer": "asked"}

    def played_with(**changes: Any) -> list[Any]:
        suite = SuiteSettings.model_validate({"tasks": [{**given, **changes}]})
        draws = plan(build_tasks(suite), RENDERER, 0)
        with RolloutPool() as pool, Scorers() as scorers:
            samples = played(draws, ScriptedEngine(VOCABULARY, after_a_result), RENDERER, pool, scorers)
            environments = pool.of(draws[0].task).environments
            assert isinstance(environments, ForeignEnvironments)
            assert len([each for each in environments._bridges if each is not None]) == 2
            return samples

    good, broken = played_with()
    assert (good.score.value, good.more["rewards"]["asked"], broken.score) == (1.0, 3.0, None)
    assert {"role": "user", "content": "1 + 5?"} in good.more["messages"]
    with pytest.raises(RunError, match=r"1 of 2 rollouts are invalid, more than max_invalid \(0.4\)"):
        played_with(max_invalid=0.4)
    assert played_with(calls=0)[0].more["ended"] == "calls"
    cut = played_with(completion_tokens=20)[0]
    assert (cut.more["ended"], cut.score.value) == ("length", 0.0)


def test_a_user_is_asked_where_the_settings_say(bridge: Path) -> None:
    asked: list[Any] = []

    def answer(path: str, body: Any) -> Any:
        asked.append((path, body["model"]))
        return {"choices": [{"message": {"role": "assistant", "content": "Hello!"}}]}

    with serving_json(answer) as url:
        user = UserSettings(url=f"{url}/v1", model="player")
        with ForeignEnvironments("script", settings_of(bridge), user) as environments:
            (episode,) = play(environments, [{"task": 1, "user": True}], [FINAL])
    assert asked == [("/v1/chat/completions", "player")]
    assert VOCABULARY.decode(episode.prompt_ids).endswith("user<|message|>Hello!<|end|><|start|>assistant")


def test_a_package_trains(bridge: Path, tmp_path: Path) -> None:
    """Rollouts of `type: script` in grpo: their rewards and their ids are what is learned from."""
    told: list[str] = []
    items = [Item(row_prompt({"task": n}, f"row {n}"), "low") for n in range(2)]
    with ForeignEnvironments("script", settings_of(bridge)) as environments, Rewards((), environment=True) as rewards:
        rollouts = Rollouts(
            items,
            RENDERER,
            ScriptedEngine(VOCABULARY, after_a_result),
            rewards,
            EpisodeLimits(),
            1.0,
            2,
            0,
            keep=tmp_path / "rollouts.jsonl",
            environments=environments,
            seen=FirstSight(told.append),
        )
        batch = rollouts([0, 0, 1, 1], 0)
    assert batch.scores == [[1.0]] * 4
    sampled = [[i for i, mark in zip(row.completion_ids, row.env_mask, strict=True) if mark] for (row,) in batch.rows]
    assert [VOCABULARY.decode(ids) for ids in sampled] == [CALL + FINAL] * 4
    kept = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    seeds = [row["rewards"].pop("environment/seed") for row in kept]
    assert [row["rewards"] for row in kept] == [{"environment": 1.0, "environment/asked": 3.0}] * 4
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]  # one world a group
    notice = "step 1: rollouts in which `temperature` of a request belongs to the run, and was overridden: 4 of 4"
    assert [line.partition(" (")[0] for line in told] == [notice]
