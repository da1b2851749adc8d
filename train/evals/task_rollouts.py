"""How the items of a task are rolled out: with which tools, rewards and user's turns. Checked before anything is
sampled."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.eval_section import (
    EnvironmentTask,
    ForeignTask,
    ProbesTask,
    PromptTask,
    SamplingSettings,
    TaskSettings,
)
from counterpoint.configs.reward_section import RewardSettings
from counterpoint.configs.tool_section import ToolSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.user_code.loader import file_of
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.scoring.function_rewards import ENVIRONMENT
from counterpoint.train.scoring.outcome import unanswered
from counterpoint.train.scoring.prompts import EvalPrompt, FollowUp
from counterpoint.train.scoring.rewards import Rewards, named

MAX_INVALID = 0.1
"""Share of a task's rollouts that may be invalid, of tasks without an environment, which has a setting for it."""


@dataclass(frozen=True, slots=True)
class TaskRollout:
    """calls, completion_tokens: limits of a turn. identity: what the rollouts depend on besides settings: hashes of the
    files of functions, declarations, versions."""

    calls: int = 8
    completion_tokens: int = 4096
    tools: ToolSettings | None = None
    rewards: tuple[RewardSettings, ...] = ()
    max_invalid: float = MAX_INVALID
    identity: Mapping[str, Any] = field(default_factory=dict)


class Toolkits:
    """The tools of a suite, each set opened once. Use it as a context manager."""

    def __init__(self) -> None:
        self._opened: dict[str, Toolkit] = {}

    def of(self, settings: ToolSettings) -> Toolkit:
        """ConfigError for tools that are unavailable."""
        key = repr(_plain(settings))
        if key not in self._opened:
            self._opened[key] = Toolkit.of(settings)
        return self._opened[key]

    def __enter__(self) -> Toolkits:
        return self

    def __exit__(self, *_: object) -> None:
        for toolkit in self._opened.values():
            toolkit.close()


def tools_of(task: TaskSettings, suite: SamplingSettings) -> ToolSettings | None:
    """The tools that are run in a task: its own, else the suite's. Probes and packages bring what they test."""
    if task.tools is not None:
        return task.tools if task.tools.any else None
    shared = suite.tools
    return shared if shared is not None and shared.any and not isinstance(task, ProbesTask | ForeignTask) else None


def rewards_of(task: TaskSettings, suite: SamplingSettings, name: str) -> tuple[RewardSettings, ...]:
    """The rewards of a task: those it names, else all but what an environment gates that it has not. ConfigError for a
    name that none has, or one that compares the rollouts of a step."""
    given = suite.rewards or ()
    if task.rewards is None:
        world = isinstance(task, EnvironmentTask | ForeignTask)
        chosen = tuple(each for each in given if world or not (each.gate or "").startswith(f"{ENVIRONMENT}/"))
        chosen = () if isinstance(task, ProbesTask) else chosen
    else:
        known = dict(zip(named(given), given, strict=True))
        for wanted in task.rewards:
            if wanted not in known:
                raise ConfigError(
                    f"task {name}: rewards: none of `eval.rewards` is named `{wanted}`: take of "
                    f"{', '.join(known) or 'them, once there are any'}"
                )
        chosen = tuple(known[wanted].model_copy(update={"name": wanted}) for wanted in task.rewards)
    for reward, called in zip(chosen, named(chosen), strict=True):
        if getattr(reward, "per", None) == "step":
            raise ConfigError(f"task {name}: reward {called}: `per: step` is of training, evaluations have no steps")
    return chosen


def with_follow_ups(prompt: EvalPrompt, task: TaskSettings) -> EvalPrompt:
    """The user's later turns of a task's setting, to a prompt without any: what answers the last is compared with the
    prompt's own truth."""
    if not isinstance(task, PromptTask) or not task.follow_ups or prompt.follow_ups:
        return prompt
    *before, last = task.follow_ups
    more = [FollowUp(text, replace(prompt.reference, prompt=text), None) for text in before]
    scored = FollowUp(last, replace(prompt.reference, prompt=last), prompt.scorer)
    return replace(prompt, follow_ups=(*more, scored), scorer=None)


def rollout_of(
    task: TaskSettings, suite: SamplingSettings, name: str, prompts: Sequence[EvalPrompt], toolkits: Toolkits
) -> TaskRollout | None:
    """None for a task whose items are answered at once. ConfigError for what cannot be used."""
    tools, rewards = tools_of(task, suite), rewards_of(task, suite, name)
    own = task if isinstance(task, EnvironmentTask | ForeignTask) else None
    calls, tokens = getattr(task, "calls", None), getattr(task, "completion_tokens", None)
    if own is None and tools is None:
        if calls is not None:
            raise ConfigError(f"task {name}: calls: no tool is run in it: give it `tools`, or leave `calls` out")
        if not rewards and not any(prompt.follow_ups for prompt in prompts):
            if tokens is not None:
                raise ConfigError(f"task {name}: completion_tokens: its items are answered at once: leave it out")
            return None
    return TaskRollout(
        calls=suite.calls if calls is None else calls,
        completion_tokens=tokens or suite.completion_tokens,
        tools=tools,
        rewards=rewards,
        max_invalid=own.max_invalid if own is not None else MAX_INVALID,
        identity=_identity(tools, rewards, toolkits),
    )


def _identity(tools: ToolSettings | None, rewards: Sequence[RewardSettings], toolkits: Toolkits) -> dict[str, Any]:
    found: dict[str, Any] = {}
    functions: list[str] = []
    if tools is not None:
        words = [Path(word) for command in tools.mcp for word in shlex.split(command)[1:]]
        scripts = {str(path): _sha256(path) for path in words if path.is_file()}
        found["tools"] = {**_plain(tools), **toolkits.of(tools).identity, "scripts": scripts}
        functions += tools.functions
    if rewards:
        found["rewards"] = [reward.model_dump(mode="json") for reward in rewards]
        functions += [name for reward in rewards if (name := getattr(reward, "function", None)) is not None]
    if functions:
        found |= {"functions": {name: _sha256(file_of(name)) for name in functions}}
    return found


def _plain(tools: ToolSettings) -> dict[str, Any]:
    return tools.model_dump(mode="json", include=set(ToolSettings.model_fields))


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None


def declared(conversation: Conversation, rollout: TaskRollout | None, toolkits: Toolkits) -> Conversation:
    """The conversation with the tools that are run declared."""
    if rollout is None or rollout.tools is None or conversation.opening_ids is not None:
        return conversation
    return toolkits.of(rollout.tools).declared(conversation)


def check_taken(suite: SamplingSettings, rollouts: Sequence[TaskRollout | None]) -> None:
    """ConfigError for tools or rewards of the suite that no task takes."""
    for name in ("tools", "rewards"):
        if getattr(suite, name) and not any(getattr(rollout, name) for rollout in rollouts if rollout is not None):
            raise ConfigError(
                f"eval.{name}: nothing takes them, since the prompts of the package bring what they test: name a file "
                "as `eval.prompts`, or tasks that take them"
            )


def check_rewards(
    rollout: TaskRollout, name: str, prompts: Sequence[EvalPrompt], environment: bool, inherited: bool
) -> list[str]:
    """What a reader should know of the rewards. ConfigError for one that can judge nothing, unless it is inherited."""
    if not rollout.rewards:
        return []
    outcomes = [unanswered(prompt, "medium", len(prompt.follow_ups)) for prompt in prompts]
    told = []
    try:
        with Rewards(rollout.rewards, environment=environment) as rewards:
            for reward, missing in rewards.unjudged(outcomes).items():
                if missing == len(outcomes) and not inherited:
                    raise ConfigError(f"reward {reward}: no row has a truth for it: give the rows one, or leave it out")
                if missing:
                    told.append(f"{name}: reward {reward}: {missing} of {len(outcomes)} items have no truth for it")
    except ConfigError as error:
        raise ConfigError(f"task {name}: {error}") from None
    return told
