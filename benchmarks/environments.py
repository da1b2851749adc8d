"""Rollouts beside each other: a slow tool of an environment or of a function, and slow rewards.

    python benchmarks/environments.py [--rollouts N] [--seconds S] [--rewards N] [--repeat N]

A scripted engine calls the tool once in each rollout and answers, so that what is measured is the driver, the processes
of the users' code and their messages. CPU is that of this program and of those processes. One rollout goes first, so
that what is loaded once is not counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.environment_section import EnvironmentSettings
from counterpoint.configs.reward_section import FunctionReward
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.user_code.preloaded import Preloaded
from counterpoint.train.episodes.environments import Environments
from counterpoint.train.episodes.episodes import World, run_episodes
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.sampling.rollout import Episode, Rollout, Turn
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.rewards import Outcome, Rewards
from counterpoint.train.scoring.scorers import Reference

CODE = '''
import time
from counterpoint import Environment

class Slow(Environment):
    seconds = 60.0

    def reset(self, row, ctx):
        return "Wait."

    def wait(self) -> str:
        """Waits."""
        time.sleep(SECONDS)
        return "done"

    def reward(self, rollout, ctx):
        return 1.0

def wait() -> str:
    """Waits."""
    time.sleep(SECONDS)
    return "done"

def slow(rollout):
    time.sleep(1.0)
    return 1.0
'''
CALL = (
    "<|channel|>analysis<|message|>Call.<|end|><|start|>assistant<|channel|>commentary to=functions.wait "
    "<|constrain|>json<|message|>{}<|call|>"
)
FINAL = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>1<|return|>"
VOCABULARY = load_vocabulary()
RENDERER = Renderer(VOCABULARY, RenderSettings(serving="sampled"))


def play(count: int, **options: Any) -> list[Episode]:
    (call,) = VOCABULARY.encode_with_specials("<|call|>")
    engine = ScriptedEngine(VOCABULARY, lambda prompt, _: FINAL if call in prompt else CALL)
    asked = Conversation((Message("user", "Wait."),))
    episodes = run_episodes([asked] * count, RENDERER, engine, worlds=[World({})] * count, **options)
    results = {called.result.content for each in episodes for called in each.called}
    assert (results, [each.invalid for each in episodes]) == ({"done"}, [None] * count)
    return episodes


def cpu_of(worker: Preloaded | None) -> float:
    """Seconds of CPU of this program, of a worker, and of what was forked from it and has ended."""
    if worker is None:
        return time.process_time()
    assert worker._process is not None
    fields = Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def timed(name: str, repeat: int, count: int, run: Callable[[int], Any], worker: Preloaded | None) -> None:
    run(1)
    for turn in range(repeat):
        time.sleep(1.5)  # the worker asks once a second for what has ended
        before, began = cpu_of(worker), time.monotonic()
        run(count)
        wall = time.monotonic() - began
        time.sleep(1.5)
        cpu = cpu_of(worker) - before
        print(f"{name}, round {turn + 1}: {wall:.2f} s, {cpu:.2f} s of CPU (load {os.getloadavg()[0]:.1f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rewards", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {args.rollouts} rollouts, {args.seconds:g} s")
    n = args.rollouts
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slow.py"
        path.write_text(CODE.replace("SECONDS", str(args.seconds)))
        for isolation in ("process", "shared"):
            settings = EnvironmentSettings.model_validate({"class": f"{path}:Slow", "isolation": isolation})
            with Environments(settings) as environments:
                worker = environments._workers[0] if isolation == "process" else None
                timed(f"environment ({isolation})", args.repeat, n, partial(play, environments=environments), worker)
        with Toolkit([f"{path}:wait"], seconds=60.0) as toolkit:
            assert toolkit._functions is not None
            asked = toolkit.declared(Conversation((Message("user", "Wait."),)))
            assert asked.tools
            timed("function tool", args.repeat, n, partial(play, toolbox=toolkit.toolbox), toolkit._functions.worker)
        completion = parse_completion(VOCABULARY.encode_with_specials(FINAL), VOCABULARY)
        rollout = Rollout({}, "0", "medium", Conversation((Message("user", "Wait."),)), (Turn(completion),), "return")
        outcome = Outcome(completion, (), Reference(), rollout=rollout)
        with Rewards([FunctionReward(type="function", function=f"{path}:slow", seconds=60.0)]) as rewards:
            score = partial(play_rewards, rewards=rewards, outcome=outcome)
            timed(f"{args.rewards} rewards of 1 s", args.repeat, args.rewards, score, None)


def play_rewards(count: int, rewards: Rewards, outcome: Outcome) -> None:
    """As the rollouts of a step ask: each in its thread, when it has ended."""
    engine = ScriptedEngine(VOCABULARY, [FINAL])
    asked = Conversation((Message("user", "Wait."),))
    found: list[float] = []
    run_episodes([asked] * count, RENDERER, engine, after=lambda place, _: found.extend(rewards.score(outcome)))
    assert found == [1.0] * count


if __name__ == "__main__":
    main()
