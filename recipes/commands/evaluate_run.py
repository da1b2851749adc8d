"""What `evaluate` takes of the run that it measures: its prompts, and the tools and rewards that it learned with.

A run folder names no code to run: what is not part of the package is run where the command line names it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.environment_section import EnvironmentSettings, InstanceSettings
from counterpoint.configs.eval_section import (
    EnvironmentTask,
    PromptTask,
    SuiteSettings,
    TaskSettings,
    TruncationSettings,
)
from counterpoint.configs.reward_section import AskingReward
from counterpoint.configs.schema import EvaluateRun, GrpoRun
from counterpoint.configs.user_code import is_foreign
from counterpoint.train.checkpoints.find import Found
from counterpoint.train.evals.task_rollouts import tools_of
from counterpoint.train.evals.tasks import task_settings
from counterpoint.train.sampling.truncation import Truncation


@dataclass(frozen=True, slots=True)
class OfRun:
    """settings: completed by the run's. inherited: whether rewards are the run's. notices: what was left out, and how
    it is asked for."""

    settings: EvaluateRun
    inherited: bool = False
    notices: tuple[str, ...] = ()


def of_run(settings: EvaluateRun, found: Found) -> OfRun:
    """A run is measured on the prompts of its own hook, unless others are named, and one that learned with tools or in
    an environment on its held-out rows as well. Prompts that are named take its tools; tasks that are named are left
    as they are."""
    run, chosen = found.run, settings.eval
    if run is None:
        return OfRun(settings)
    changed: dict[str, Any] = {}
    notices: list[str] = []
    unset = not chosen.tasks and chosen.tools is None and chosen.rewards is None
    if isinstance(run, GrpoRun) and run.tools.any and unset:
        changed |= _rolled(run, notices)
    if chosen.prompts is None and not chosen.tasks:
        hook = run.eval
        names = ("prompts", "max_new_tokens", "temperature", *TruncationSettings.model_fields)
        kept = {name: getattr(hook, name) for name in names}
        changed |= {n: value for n, value in kept.items() if n == "prompts" or n not in chosen.model_fields_set}
        more = _held_out(run, chosen, notices, hook.prompts) if isinstance(run, GrpoRun) else []
        if more:
            asked = task_settings(chosen.model_copy(update=changed))
            changed |= {"prompts": None, "tasks": (*asked, *more)}
    suite = chosen.model_copy(update=changed)
    if isinstance(run, GrpoRun) and run.tools.any and not _takes_tools(suite):
        builtin = [name for name in ("python", "browser") if getattr(run.tools, name)]
        names = ", ".join([*run.tools.functions, *run.tools.mcp, *builtin])
        notices.append(f"the run learned with tools ({names}), and nothing is measured with them: set eval.tools")
    return OfRun(settings.model_copy(update={"eval": suite}), inherited="rewards" in changed, notices=tuple(notices))


def _rolled(run: GrpoRun, notices: list[str]) -> dict[str, Any]:
    """Tools, rewards and limits, without code that is not part of the package."""
    functions, left_out = _parted(run.tools.functions)
    if left_out or run.tools.mcp:
        named = [_written("eval.tools.functions", left_out)] if left_out else []
        named += [_written("eval.tools.mcp", run.tools.mcp)] if run.tools.mcp else []
        notices.append(f"not run, since a run folder names no code: add {' '.join(named)}")
    tools = run.tools.model_copy(update={"functions": tuple(functions), "mcp": ()})
    if not tools.any:
        return {}
    own = [each for each in run.rewards if isinstance(each, AskingReward) or is_foreign(getattr(each, "function", ""))]
    if own:
        notices.append(
            "rewards that ask a server or are functions of the run are left out "
            f"({', '.join(each.type for each in own)}): name them in a run file as `eval.rewards`"
        )
    return {
        "tools": tools,
        "rewards": tuple(each for each in run.rewards if each not in own),
        "calls": run.rollout.calls,
        "completion_tokens": run.rollout.completion_tokens,
    }


def _held_out(run: GrpoRun, chosen: SuiteSettings, notices: list[str], asked: str | None) -> list[TaskSettings]:
    """The held-out rows of a run that learned with tools or in an environment, sampled as its rollouts are, but for
    what `chosen` sets of the distribution."""
    if run.rollout.environments:
        notices.append("held-out rows of several environments are left out: name a task of each in a run file")
        return []
    if not run.tools.any and run.rollout.environment is None:
        return []
    rollout = run.rollout
    drawn = {"temperature": rollout.temperature, **asdict(Truncation.of(rollout))}
    limits: dict[str, Any] = {name: value for name, value in drawn.items() if name not in chosen.model_fields_set}
    limits |= {"max_new_tokens": rollout.action_tokens, "efforts": run.grpo.efforts or None}
    out: list[TaskSettings] = []
    for task in run.data.valid_tasks:
        path = getattr(task, "path", None)
        if path is not None and path == asked:
            continue
        if path is not None and ":" not in path and not Path(path).exists():
            notices.append(f"held-out rows are left out, since the file is not here: {path}")
        elif run.rollout.environment is None:
            out.append(task.model_copy(update=limits))
        else:
            out += _in_environment(run, task, limits, notices)
    return out


def _in_environment(
    run: GrpoRun, task: PromptTask, limits: dict[str, Any], notices: list[str]
) -> list[EnvironmentTask]:
    own = run.rollout.environment
    assert own is not None
    path = getattr(task, "path", None)
    if path is None:
        return []
    if not isinstance(own, EnvironmentSettings) or is_foreign(own.class_name):
        kind = f"environment, class {own.class_name}" if isinstance(own, EnvironmentSettings) else f"{own.type}"
        notices.append(
            f"the environment of the run is not played, since a run folder names no code: give a run file with a task "
            f"of type {kind} and path {path}"
        )
        return []
    given = own.model_dump(include=set(InstanceSettings.model_fields), exclude_defaults=True)
    shared = {name: getattr(task, name) for name in ("name", "size", "instructions", "tools")}
    limits = {**limits, "calls": run.rollout.calls, "completion_tokens": run.rollout.completion_tokens}
    return [EnvironmentTask(type="environment", path=path, user=run.rollout.user, **given, **shared, **limits)]


def _takes_tools(suite: SuiteSettings) -> bool:
    return any(tools_of(task, suite) is not None for task in task_settings(suite))


def _parted(functions: Iterable[str]) -> tuple[list[str], list[str]]:
    """Functions of the package, and all others."""
    ours: list[str] = []
    foreign: list[str] = []
    for name in functions:
        (foreign if is_foreign(name) else ours).append(name)
    return ours, foreign


def _written(setting: str, values: Sequence[str]) -> str:
    value = values[0] if len(values) == 1 else f"[{', '.join(values)}]"
    return shlex.quote(f"{setting}={value}")
