"""Samples of environment tasks: rollouts as training has them, rewarded by the environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from counterpoint.configs.errors import RunError
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.episodes.environment_worker import Facts
from counterpoint.train.episodes.episodes import EpisodeLimits, World, run_episodes
from counterpoint.train.evals.channels import Judged
from counterpoint.train.evals.sampling_plan import Draw
from counterpoint.train.evals.tasks import Task
from counterpoint.train.foreign.choose import Chosen, open_environments
from counterpoint.train.foreign.environments import ForeignEnvironments
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.rollout import Episode
from counterpoint.train.scoring.scorers import Score


class EnvironmentPool:
    """The environments of tasks, each loaded when it is first needed. Use it as a context manager."""

    def __init__(self) -> None:
        self._loaded: dict[str, Chosen] = {}

    def of(self, task: Task) -> Chosen:
        """ConfigError for a class that cannot be loaded, or a `scorer` without one."""
        assert task.environment is not None
        if task.name not in self._loaded:
            self._loaded[task.name] = open_environments(task.environment, task.environment.user)
        return self._loaded[task.name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for environments in self._loaded.values():
            environments.close()
            for line in environments.told() if isinstance(environments, ForeignEnvironments) else ():
                print(line, file=sys.stderr)


def played(draws: Sequence[Draw], engine: Engine, renderer: Renderer, pool: EnvironmentPool) -> list[Episode]:
    """The rollouts of draws of one environment task, in order. RunError where too many are invalid."""
    task = draws[0].task
    environments, own = pool.of(task), task.environment
    assert own is not None
    episodes = run_episodes(
        [draw.prompt.conversation for draw in draws],
        renderer,
        engine,
        limits=EpisodeLimits(task.max_new_tokens, own.completion_tokens, own.calls),
        efforts=[draw.effort for draw in draws],
        temperature=task.temperature,
        seed=[draw.seed for draw in draws],
        environments=environments,
        worlds=[
            World(draw.prompt.conversation.metadata, draw.prompt.id, Facts(draw.world, draw.sample, 0, draw.effort))
            for draw in draws
        ],
    )
    invalid = [(draw.prompt.id, each.invalid) for draw, each in zip(draws, episodes, strict=True) if each.invalid]
    if len(invalid) > own.max_invalid * len(draws):
        raise RunError(
            f"task {task.name}: {len(invalid)} of {len(draws)} rollouts are invalid, more than max_invalid "
            f"({own.max_invalid:g}) allows; the first ({invalid[0][0]}): {invalid[0][1]}"
        )
    return episodes


def judged(draw: Draw, episode: Episode, environments: Chosen) -> Judged:
    """A rollout as a sample: its last turn, with the violations of all turns. An invalid one has no score."""
    turns = episode.turns
    completion = replace(
        episode.completion(), violations=tuple(violation for turn in turns for violation in turn.completion.violations)
    )
    asked = episode.asked or draw.prompt.conversation
    said = next((message.content for message in asked.messages if message.role == "user"), "")
    prompt = replace(draw.prompt, reference=replace(draw.prompt.reference, prompt=said))
    calls = [called for turn in turns for called in turn.called]
    more: dict[str, Any] = {
        "turns": len(turns),
        "ended": episode.stop,
        "rewards": dict(named(episode.earned)),
        "invalid": episode.invalid,
        "called": [{"name": c.call.recipient, "result": c.result.content, "fault": c.fault} for c in calls],
        "messages": list(episode.messages),
        **({"requests": dict(episode.requests)} if episode.requests else {}),
    }
    return Judged(prompt, draw.effort, draw.sample, completion, _score(draw, episode, environments), more)


def named(earned: Mapping[str, float]) -> Mapping[str, float]:
    return {name or "environment": value for name, value in earned.items()}


def _score(draw: Draw, episode: Episode, environments: Chosen) -> Score | None:
    own = draw.task.environment
    assert own is not None
    if episode.invalid is not None or not episode.earned:
        return None
    if episode.requests.get("broken"):
        return Score(0.0, "wrong", "the package failed on what the model said")
    if own.scorer is not None and own.scorer not in episode.earned:
        raise RunError(
            f"task {draw.task.name}: scorer: the environment gives no reward named `{own.scorer}` ({draw.prompt.id}): "
            f"it gives {', '.join(named(episode.earned))}"
        )
    value = environments.weigh(episode.earned) if own.scorer is None else episode.earned[own.scorer]
    share = min(1.0, max(0.0, value))  # the report's rates are between 0 and 1; `rewards` has the number itself
    return Score(share, "right" if value == 1 else "partly" if value > 0 else "wrong")


def measured(samples: Sequence[Judged]) -> dict[str, float]:
    """Means of one task's rollouts: of each reward over those that are valid, turns, faults, right channels."""
    valid = [sample.more for sample in samples if sample.more["invalid"] is None]
    out = {
        f"rewards/{name}": _mean([more["rewards"][name] for more in valid if name in more["rewards"]])
        for name in dict.fromkeys(name for more in valid for name in more["rewards"])
    }
    out["turns"] = _mean([sample.more["turns"] for sample in samples])
    calls = [called for sample in samples for called in sample.more["called"]]
    out["calls"] = len(calls) / len(samples)
    out["faults"] = sum(called["fault"] is not None for called in calls) / max(1, len(calls))
    out["invalid"] = 1 - len(valid) / len(samples)
    out["channel_correct"] = _mean([sample.completion.ok for sample in samples])
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
