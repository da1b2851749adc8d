"""What `recipe: grpo` reads: the prompts of its tasks with their truth, checked against the rewards and the step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from counterpoint.configs.errors import ConfigError, DataError
from counterpoint.configs.eval_section import SuiteSettings, TaskSettings
from counterpoint.configs.reward_section import LengthReward
from counterpoint.configs.schema import GrpoRun, PromptSettings
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.evals.tasks import build_tasks
from counterpoint.train.loop.grpo_items import Item, items_of
from counterpoint.train.run.session import Session
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Rewards


def read_items(
    settings: GrpoRun, session: Session, renderer: Renderer, toolkit: Toolkit, rewards: Rewards, groups: int
) -> list[Item]:
    """Each turn of each prompt at its efforts. groups: sampled in one step; ConfigError for fewer items than that."""
    environment = settings.rollout.environment is not None
    prompts = read_prompts(settings.data.train, settings.data, renderer, toolkit, environment)
    items = items_of(prompts, renderer, settings.grpo.efforts)
    check_rewards(rewards, items, session)
    session.say(f"{len(prompts)} prompts, {groups} groups of {settings.grpo.group} a step")
    if len(items) < groups:
        raise ConfigError(
            f"data.train: {len(items)} turns at their efforts are fewer than the {groups} groups of a step: lower "
            "train.batch_rows or train.accumulation, or give more prompts"
        )
    return items


def read_held_out(
    settings: GrpoRun, session: Session, renderer: Renderer, toolkit: Toolkit, rewards: Rewards
) -> dict[str, list[Item]]:
    """The items of `data.valid`, by task."""
    if not settings.data.valid:
        return {}
    environment = settings.rollout.environment is not None
    prompts = read_prompts(settings.data.valid, settings.data, renderer, toolkit, environment)
    check_rewards(rewards, items_of(prompts, renderer), session)
    session.say(f"held-out: {len(prompts)} prompts")
    by_task = {prompt.task: [other for other in prompts if other.task == prompt.task] for prompt in prompts}
    return {task: items_of(found, renderer, settings.grpo.efforts) for task, found in by_task.items()}


def read_prompts(
    tasks: Sequence[TaskSettings],
    data: PromptSettings,
    renderer: Renderer,
    toolkit: Toolkit | None = None,
    environment: bool = False,
) -> list[EvalPrompt]:
    """The prompts of all tasks with their truth, the tools declared. environment: one is given the rows, and may write
    the prompts. DataError for one that is too long."""
    prompts: list[EvalPrompt] = []
    for task in build_tasks(SuiteSettings(tasks=tuple(tasks)), rows=environment):
        for prompt in task.prompts:
            if toolkit is not None and not toolkit.empty and prompt.conversation.opening_ids is None:
                prompt = replace(prompt, conversation=toolkit.declared(prompt.conversation))
            if environment and not prompt.conversation.messages:
                prompts.append(prompt)
                continue
            said_later = sum(len(renderer.vocabulary.encode(later.text)) for later in prompt.follow_ups)
            length = len(renderer.prompt(prompt.conversation)) + said_later
            if length > data.max_tokens:
                raise DataError(
                    f"{prompt.id}: {length} tokens, more than data.max_tokens ({data.max_tokens}): raise it"
                )
            prompts.append(prompt)
    return prompts


def check_rewards(rewards: Rewards, items: list[Item], session: Session) -> None:
    """ConfigError for a reward that can judge nothing; a line for one that some turns have no truth for."""
    turns = {(item.prompt.id, item.turn): item.unanswered() for item in items}
    for name, missing in rewards.unjudged(list(turns.values())).items():
        if missing == len(turns):
            raise ConfigError(f"reward {name}: no row has a truth for it: give the rows one, or take another `scorer`")
        if missing:
            first = next(key for key, outcome in turns.items() if rewards.unjudged([outcome])[name])
            session.warn(
                f"reward {name}: {missing} of {len(turns)} turns have no truth for it and earn nothing there, the "
                f"first: {first[0]}"
            )
    for name, setting in zip(rewards.names, rewards.settings, strict=True):
        if isinstance(setting, LengthReward):
            without = [item for item in items if item.effort not in setting.budgets]
            if without:
                session.warn(
                    f"reward {name}: {len(without)} of {len(items)} turns at their effort earn nothing, since "
                    f"`budgets` has none for it, the first: {without[0].prompt.id} at {without[0].effort}"
                )


def fingerprint(items: list[Item], renderer: Renderer) -> str:
    """Hash of every prompt's ids and truth in order, to find changed data."""
    digest = hashlib.sha256()
    for item in items:
        truth = json.dumps(asdict(item.prompt.reference), sort_keys=True, default=str)
        asked = item.prompt.conversation
        ids = renderer.prompt(asked, item.effort) if asked.messages else dict(asked.metadata)
        digest.update(repr((ids, truth)).encode())
        if item.turn:
            digest.update(repr(item.prompt.follow_ups[item.turn - 1]).encode())
    return digest.hexdigest()
