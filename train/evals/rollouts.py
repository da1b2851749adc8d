"""Samples of tasks whose items are rolled out as in training: with tools, user's turns, environments and rewards."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from counterpoint.configs.errors import RunError
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.episodes.environment_worker import Facts
from counterpoint.train.episodes.episodes import EpisodeLimits, World, run_episodes
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.evals.channels import Judged, judge
from counterpoint.train.evals.sampling_plan import Draw
from counterpoint.train.evals.tasks import Task
from counterpoint.train.foreign.choose import Chosen, open_environments
from counterpoint.train.foreign.environments import ForeignEnvironments
from counterpoint.train.sampling.engines import Engine, cut
from counterpoint.train.sampling.rollout import Episode
from counterpoint.train.scoring.function_rewards import Found, Scored
from counterpoint.train.scoring.outcome import Outcome, asked_in, outcome_of
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Score, Scorers

TOTAL = "reward"
"""Name of the weighted sum of all rewards among their means; a line of samples.jsonl has it under this name."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What the rollouts of a task run, open."""

    environments: Chosen | None
    toolkit: Toolkit | None
    rewards: Rewards

    def close(self) -> None:
        for each in (self.environments, self.toolkit, self.rewards):
            if each is not None:
                each.close()


class RolloutPool:
    """What tasks run in their rollouts, each opened when it is first needed. Use it as a context manager."""

    def __init__(self) -> None:
        self._opened: dict[str, Opened] = {}

    def of(self, task: Task) -> Opened:
        """ConfigError for a class, a tool or a reward that cannot be loaded."""
        if task.name not in self._opened:
            own, rollout = task.environment, task.rollout
            assert rollout is not None
            environments = None if own is None else open_environments(own, own.user)
            opened = Opened(environments, None, Rewards(rollout.rewards, environment=own is not None))
            self._opened[task.name] = opened
            if rollout.tools is not None:
                self._opened[task.name] = replace(opened, toolkit=Toolkit.of(rollout.tools))
        return self._opened[task.name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for opened in self._opened.values():
            opened.close()
            for line in opened.environments.told() if isinstance(opened.environments, ForeignEnvironments) else ():
                print(line, file=sys.stderr)


def played(
    draws: Sequence[Draw],
    engine: Engine,
    renderer: Renderer,
    pool: RolloutPool,
    scorers: Scorers,
    stops: Callable[[], bool] | None = None,
) -> list[Judged]:
    """The rollouts of draws of one task, in order: all samples of an item together. RunError where too many are
    invalid."""
    task = draws[0].task
    opened, rollout = pool.of(task), task.rollout
    assert rollout is not None
    rewards, toolkit = opened.rewards, opened.toolkit
    begun: dict[int, tuple[Outcome, list[Found]]] = {}

    def rewarded(place: int, episode: Episode) -> None:
        outcome = outcome_of(draws[place].prompt, draws[place].effort, episode)
        unknown = [Found(None) for _ in rewards.names]
        begun[place] = outcome, unknown if episode.invalid else rewards.begin(outcome)

    episodes = run_episodes(
        [draw.prompt.conversation for draw in draws],
        renderer,
        cut(engine, task.truncation),
        limits=EpisodeLimits(task.max_new_tokens, rollout.completion_tokens, rollout.calls),
        toolbox=None if toolkit is None else toolkit.toolbox,
        efforts=[draw.effort for draw in draws],
        temperature=task.temperature,
        seed=[draw.seed for draw in draws],
        follow_ups=[[later.text for later in draw.prompt.follow_ups] for draw in draws],
        environments=opened.environments,
        worlds=[
            World(draw.prompt.conversation.metadata, draw.prompt.id, Facts(draw.world, draw.sample, 0, draw.effort))
            for draw in draws
        ],
        after=rewarded,
        stops=stops,
    )
    places = range(len(draws))
    found = rewards.finish([begun[n][0] for n in places], [begun[n][1] for n in places], task.samples)
    found = [_that_apply(each, begun[n][1]) for n, each in enumerate(found)]
    samples = [_judged(*each, opened, scorers) for each in zip(draws, episodes, found, strict=True)]
    invalid = [sample for sample in samples if sample.more["invalid"]]
    if len(invalid) > rollout.max_invalid * len(draws):
        raise RunError(
            f"task {task.name}: {len(invalid)} of {len(draws)} rollouts are invalid, more than max_invalid "
            f"({rollout.max_invalid:g}) allows; the first ({invalid[0].prompt.id}): {invalid[0].more['invalid']}"
        )
    return samples


def drawn(
    draws: Sequence[Draw],
    engine: Engine,
    renderer: Renderer,
    pool: RolloutPool,
    scorers: Scorers,
    stops: Callable[[], bool] | None = None,
) -> list[Judged]:
    """The samples of draws of one task, in order, whether they are rolled out or answered at once."""
    task = draws[0].task
    if task.rollout is not None:
        return played(draws, engine, renderer, pool, scorers, stops)
    found = cut(engine, task.truncation).sample(
        [draw.prompt_ids for draw in draws], task.max_new_tokens, task.temperature, [draw.seed for draw in draws]
    )
    return [
        judge(draw.prompt, draw.effort, draw.sample, each.ids, each.finish_reason, renderer.vocabulary, scorers)
        for draw, each in zip(draws, found, strict=True)
    ]


def _that_apply(found: Scored, begun: Sequence[Found]) -> Scored:
    """Without the rewards that a row has no truth for, which count 0 in training."""
    values = [value if each.applies else math.nan for value, each in zip(found.values, begun, strict=True)]
    return replace(found, values=values)


def _judged(draw: Draw, episode: Episode, found: Scored, opened: Opened, scorers: Scorers) -> Judged:
    """A rollout as a sample: its last turn, with the violations of all turns. An invalid one has no score."""
    turns = episode.turns
    completion = replace(
        episode.completion(), violations=tuple(violation for turn in turns for violation in turn.completion.violations)
    )
    invalid = episode.invalid or found.invalid
    rewards = _rewards(draw, episode, found, opened)
    prompt, scores = _compared(draw.prompt, episode, scorers)
    asked = episode.asked or draw.prompt.conversation
    said = next((message.content for message in asked.messages if message.role == "user"), "")
    calls = [called for turn in turns for called in turn.called]
    more: dict[str, Any] = {
        "turns": len(turns),
        "ended": episode.stop,
        "rewards": rewards,
        TOTAL: _total(episode, found, opened) if rewards and not invalid else None,
        "invalid": invalid,
        **({"judge_tokens": found.tokens} if found.tokens else {}),
        "called": [{"name": c.call.recipient, "result": c.result.content, "fault": c.fault} for c in calls],
        "messages": list(episode.messages),
        **({"requests": dict(episode.requests)} if episode.requests else {}),
        **({"turn_scores": [each and each.value for each in scores]} if draw.prompt.follow_ups else {}),
    }
    score = _earned(draw, episode, opened) if draw.task.environment is not None else scores[-1] if scores else None
    prompt = replace(prompt, reference=replace(prompt.reference, prompt=said))
    return Judged(prompt, draw.effort, draw.sample, completion, None if invalid else score, more)


def _compared(prompt: EvalPrompt, episode: Episode, scorers: Scorers) -> tuple[EvalPrompt, list[Score | None]]:
    """The prompt with the truth of the last turn that has one, and the score of each turn up to it: None of one without
    a truth. A turn that was not reached is not right."""
    asked = [asked_in(prompt, turn) for turn in range(1 + len(prompt.follow_ups))]
    last = max((n for n, each in enumerate(asked) if each.scorer is not None), default=None)
    if last is None:
        return prompt, []
    scores: list[Score | None] = []
    for turn, each in enumerate(asked[: last + 1]):
        if each.scorer is None:
            scores.append(None)
        elif turn < len(episode.turns):
            scores.append(scorers.score(each.scorer, episode.turns[turn].completion, each.reference))
        else:
            scores.append(Score(0.0, "missing", f"ended in turn {len(episode.turns)}: {episode.stop}"))
    return replace(prompt, scorer=asked[last].scorer, reference=asked[last].reference), scores


def _rewards(draw: Draw, episode: Episode, found: Scored, opened: Opened) -> dict[str, float]:
    """By name what was earned: of the environment as it names it, then of the run file."""
    out = dict(of_environment(episode.earned))
    own = {name: v for name, v in zip(opened.rewards.names, found.values, strict=True) if not math.isnan(v)}
    for name, value in {**own, **found.parts}.items():
        if name in out or name == TOTAL:
            raise RunError(f"task {draw.task.name}: two rewards are named `{name}`: give one of them another `name`")
        out[name] = value
    return out


def of_environment(earned: Mapping[str, float]) -> Mapping[str, float]:
    """An environment's rewards by name: the one without a name is `environment`."""
    return {name or "environment": value for name, value in earned.items()}


def _total(episode: Episode, found: Scored, opened: Opened) -> float:
    own = 0.0 if opened.environments is None else opened.environments.weigh(episode.earned)
    return opened.rewards.total(found.values) + own


def _earned(draw: Draw, episode: Episode, opened: Opened) -> Score | None:
    own, environments = draw.task.environment, opened.environments
    assert own is not None
    assert environments is not None
    if episode.invalid is not None or not episode.earned:
        return None
    if episode.requests.get("broken"):
        return Score(0.0, "wrong", "the package failed on what the model said")
    if own.scorer is not None and own.scorer not in episode.earned:
        raise RunError(
            f"task {draw.task.name}: scorer: the environment gives no reward named `{own.scorer}` ({draw.prompt.id}): "
            f"it gives {', '.join(of_environment(episode.earned))}"
        )
    value = environments.weigh(episode.earned) if own.scorer is None else episode.earned[own.scorer]
    share = min(1.0, max(0.0, value))  # the report's rates are between 0 and 1; `rewards` has the number itself
    return Score(share, "right" if value == 1 else "partly" if value > 0 else "wrong")


def measured(samples: Sequence[Judged]) -> dict[str, float]:
    """Means of one task's samples, the invalid ones left out: score, and of rollouts each reward, turns, calls and
    faults."""
    valid = [sample for sample in samples if not sample.more.get("invalid")]
    if not valid:
        return {"invalid": 1.0}
    mores = [sample.more for sample in valid if "rewards" in sample.more]
    out = {
        f"rewards/{name}": _mean([more["rewards"][name] for more in mores if name in more["rewards"]])
        for name in dict.fromkeys(name for more in mores for name in more["rewards"])
    }
    scores = [sample.score.value for sample in valid if sample.score is not None]
    if scores:
        out["score"] = _mean(scores)
    if mores:
        calls = [called for more in mores for called in more["called"]]
        out["turns"] = _mean([more["turns"] for more in mores])
        out["calls"] = len(calls) / len(mores)
        out["faults"] = sum(called["fault"] is not None for called in calls) / max(1, len(calls))
        out["invalid"] = 1 - len(valid) / len(samples)
    out["channel_correct"] = _mean([sample.completion.ok for sample in valid])
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
