"""What rollouts are played with, made from the settings of a run: in the trainer's process, and in one of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from counterpoint.configs.dump import plain
from counterpoint.configs.environment_section import AnyEnvironment
from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.configs.reward_section import FunctionReward
from counterpoint.configs.schema import GrpoRun
from counterpoint.data.harmony.render import Renderer
from counterpoint.recipes.grpo_prompts import fingerprint, read_sets
from counterpoint.train.episodes.environments import Environments
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.episodes.routes import Routes
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.foreign.choose import Chosen, open_environments
from counterpoint.train.loop.group_journal import Journal
from counterpoint.train.loop.group_order import GroupOrder, Share
from counterpoint.train.loop.group_pipeline import Pipeline
from counterpoint.train.loop.group_player import EngineAt, ThreadPlayer
from counterpoint.train.loop.grpo_items import Item, items_of
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.rl_arguments import sampled_groups
from counterpoint.train.loop.rollout_process import RolloutProcess
from counterpoint.train.loop.step_order import StepOrder
from counterpoint.train.model.load import load_vocabulary_of
from counterpoint.train.run.session import Session
from counterpoint.train.run.world import is_main_process, process_number, world_size
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.following_pool import FollowingPool
from counterpoint.train.sampling.pinned import PinnedEngine
from counterpoint.train.sampling.weight_sync import accepted_servers
from counterpoint.train.scoring.prompts import load_prompts
from counterpoint.train.scoring.rewards import Rewards


@dataclass(frozen=True)
class Parts:
    """Of a run, opened; the stack that they were made with closes them."""

    toolkit: Toolkit
    rewards: Rewards
    environments: Chosen | Routes[Chosen] | None
    renderer: Renderer


def open_parts(settings: GrpoRun, stack: ExitStack) -> Parts:
    """ConfigError for what cannot be loaded, or an environment's tool whose name is taken."""
    toolkit = stack.enter_context(Toolkit.of(settings.tools))
    rewards = stack.enter_context(Rewards(settings.rewards, environment=settings.rollout.in_environments))
    environments = _environments(settings, stack, toolkit)
    return Parts(toolkit, rewards, environments, Renderer(load_vocabulary_of(settings.model), settings.data))


def rollouts_of(settings: GrpoRun, parts: Parts, items: Sequence[Item], engine: Engine, **more: Any) -> Rollouts:
    """more: further arguments of `Rollouts`."""
    rollout = settings.rollout
    limits = EpisodeLimits(rollout.action_tokens, rollout.completion_tokens, rollout.calls, settings.data.max_tokens)
    return Rollouts(
        items,
        parts.renderer,
        engine,
        parts.rewards,
        limits,
        rollout.temperature,
        settings.grpo.group,
        settings.seed,
        None if parts.toolkit.empty else parts.toolkit,
        process=process_number(),
        environments=parts.environments,
        **more,
    )


def make_pipeline(
    settings: GrpoRun, session: Session, rollouts: Rollouts, engine: FollowingPool, steps: int, stack: ExitStack
) -> Pipeline:
    """The groups of this process, of `steps` optimizer steps: played in threads of it, or in a process of their own
    where they are sampled while it trains."""
    data = fingerprint(list(rollouts.items), rollouts.renderer)
    share, order = group_order(settings, len(rollouts.items), steps)
    settled = json.dumps([plain(settings), data], sort_keys=True, default=str)
    run = hashlib.sha256(settled.encode()).hexdigest()[:16]
    journal = Journal(session.path / "journal", process_number(), world_size(), run)
    if settings.rollout.staleness:
        player = RolloutProcess(child_parts, (settings, data, engine.folder), rollouts, share, journal)
        rollouts.elsewhere = True
    else:
        player = ThreadPlayer(rollouts, share, journal, lambda version, *_: engine.at(version))
    engine.keep = order.most_age + 1
    pipeline = Pipeline(
        order,
        journal,
        player,
        engine,
        settings.grpo.iterations,
        is_main_process(),
        rollouts.gather,
        lambda value: broadcast_object_list([value])[0],
        session.warn,
    )
    stack.callback(pipeline.close)
    return pipeline


def group_order(settings: GrpoRun, n_items: int, steps: int) -> tuple[Share, GroupOrder]:
    """ConfigError where `order: window` has too few groups to choose from."""
    order = StepOrder(n_items, sampled_groups(settings), settings.seed, settings.data.shuffle)
    whole = any(isinstance(each, FunctionReward) and each.per == "step" for each in settings.rewards)
    grpo, rollout = settings.grpo, settings.rollout
    share = Share(order, grpo.group, process_number(), world_size(), grpo.iterations, whole)
    last = share.units * -(-steps // grpo.iterations)
    if rollout.order == "strict":
        return share, GroupOrder(share.units, last, rollout.staleness)
    found = GroupOrder.windowed(share.units, last, rollout.staleness)
    if found.window == 1:
        why = "a reward compares all rollouts of a step" if whole else f"a process has {share.units} groups a step"
        raise ConfigError(f"rollout.order: window: there is nothing to choose from ({why}): use `order: strict`")
    return share, found


def child_parts(stack: ExitStack, given: tuple[GrpoRun, str, Path]) -> tuple[Rollouts, EngineAt]:
    """What the process of its own plays with. RunError where it reads other prompts than the trainer did."""
    settings, data, folder = given
    parts = open_parts(settings, stack)
    sets = read_sets(settings, parts.renderer, parts.toolkit, load_prompts(settings.eval.prompts))
    items = items_of(sets.train, parts.renderer, settings.grpo.efforts)
    if fingerprint(items, parts.renderer) != data:
        raise RunError("data.train: the prompts have changed since the run began: start it again")
    servers = accepted_servers(settings, folder)
    stack.callback(servers.close)
    return rollouts_of(settings, parts, items, servers), lambda _, name, step: PinnedEngine(servers, name, step)


def _environments(settings: GrpoRun, stack: ExitStack, toolkit: Toolkit) -> Chosen | Routes[Chosen] | None:
    """`rollout.environment`, or those of `rollout.environments`, loaded. ConfigError where one declares a tool whose
    name is taken."""

    def loaded(chosen: AnyEnvironment) -> Chosen:
        environments = stack.enter_context(open_environments(chosen, settings.rollout.user))
        if not isinstance(environments, Environments):
            return environments
        taken = {tool.name for tool in toolkit.tools} & {tool.name for tool in environments.described.tools}
        if taken:
            raise ConfigError(f"tools: the environment has a tool `{min(taken)}`, too: rename one of them")
        return environments

    chosen = settings.rollout.environment
    if chosen is not None:
        return loaded(chosen)
    several = {name: loaded(each) for name, each in settings.rollout.environments.items()}
    return Routes(several) if several else None
