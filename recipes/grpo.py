"""Learning from rewards: groups of rollouts, with tools where the run file names them, scored on the typed result.

Reads top to bottom: folder and lock, tools, prompts, model, adapter, trainer, training, result, report.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict, replace

import torch
from accelerate.utils import gather_object
from transformers import set_seed

from counterpoint.configs.dump import plain
from counterpoint.configs.errors import ConfigError, DataError
from counterpoint.configs.eval_section import SuiteSettings
from counterpoint.configs.schema import GrpoRun, PromptSettings, ToolSettings
from counterpoint.data.harmony.render import Renderer
from counterpoint.recipes.steps import add_measurements, prepare_model, train_to_end
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.evals.tasks import build_tasks
from counterpoint.train.loop.callbacks import AttachmentProof
from counterpoint.train.loop.grpo_items import Item, items_of
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.grpo_trainer import RewardTrainer
from counterpoint.train.loop.rl_arguments import grpo_arguments, steps_of
from counterpoint.train.loop.teacher import Teacher, load_teacher
from counterpoint.train.loop.training_arguments import loop_settings
from counterpoint.train.model.load import LoadedModel, device_of, load_vocabulary_of
from counterpoint.train.run.session import Session, open_session
from counterpoint.train.run.signals import StopSignal
from counterpoint.train.run.world import process_number, rows_per_step
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.sampling.weight_sync import check_engine, following_engine
from counterpoint.train.scoring.prompts import EvalPrompt, load_prompts
from counterpoint.train.scoring.rewards import Rewards


def run(settings: GrpoRun, resume: str | None = None, overwrite: bool = False) -> int:
    """Train as `settings` say; arguments and exit codes as of `recipes.sft.run`."""
    if settings.train.threads is not None:
        torch.set_num_threads(settings.train.threads)
    with StopSignal() as stop, open_session(settings, resume, overwrite) as session, ExitStack() as stack:
        session.say(f"run folder  {session.path}")
        toolkit = stack.enter_context(make_toolkit(settings.tools))
        renderer = Renderer(load_vocabulary_of(settings.model), settings.data)
        prompts = read_prompts(settings.data, renderer, toolkit)
        items = items_of(prompts, renderer, settings.grpo.efforts)
        rewards = stack.enter_context(Rewards(settings.rewards))
        check_rewards(rewards, items, session)
        groups = rows_per_step(settings) // settings.grpo.group
        steps = steps_of(settings, len(items), groups)
        session.say(f"{len(prompts)} prompts, {groups} groups of {settings.grpo.group} a step")
        probes = load_prompts(settings.eval.prompts)
        identity = Identity(plain(settings), fingerprint(items, renderer), rows_per_step(settings))
        check_groups(items, groups)
        check_engine(settings)
        session.began(identity, steps, allow_changes=overwrite)

        set_seed(settings.seed)
        loaded = prepare_model(settings, session)
        trainer = RewardTrainer(
            loaded,
            grpo_arguments(settings, session.path, steps),
            make_rollouts(settings, session, loaded, items, renderer, rewards, toolkit),
            loop_settings(settings, session.path),
            identity,
            extras=loaded.vocabulary_map.save,
            stop=stop,
            shared=settings.grpo.share_prompts,
            teacher=make_teacher(settings),
        )
        trainer.add_callback(AttachmentProof(lambda: trainer.taught))
        hook = add_measurements(settings, session, loaded, trainer, renderer, probes)
        return train_to_end(settings, session, loaded, trainer, hook, steps)


def make_toolkit(tools: ToolSettings) -> Toolkit:
    return Toolkit(tools.functions, tools.mcp, tools.python, tools.seconds)


def make_teacher(settings: GrpoRun) -> Teacher | None:
    teacher = settings.grpo.teacher
    if teacher is None:
        return None
    return load_teacher(teacher, settings.rollout.temperature, device_of(settings.train.device))


def read_prompts(data: PromptSettings, renderer: Renderer, toolkit: Toolkit | None = None) -> list[EvalPrompt]:
    """The prompts of all tasks with their truth, the tools declared. DataError for one that is too long."""
    prompts: list[EvalPrompt] = []
    for task in build_tasks(SuiteSettings(tasks=data.train)):
        for prompt in task.prompts:
            if toolkit is not None and not toolkit.empty and prompt.conversation.opening_ids is None:
                prompt = replace(prompt, conversation=toolkit.declared(prompt.conversation))
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
            session.warn(f"reward {name}: {missing} of {len(turns)} turns have no truth for it and earn nothing there")


def check_groups(items: list[Item], groups: int) -> None:
    if len(items) < groups:
        raise ConfigError(
            f"data.train: {len(items)} turns at their efforts are fewer than the {groups} groups of a step: lower "
            "train.batch_rows or train.accumulation, or give more prompts"
        )


def fingerprint(items: list[Item], renderer: Renderer) -> str:
    """Hash of every prompt's ids and truth in order, to find changed data."""
    digest = hashlib.sha256()
    for item in items:
        truth = json.dumps(asdict(item.prompt.reference), sort_keys=True, default=str)
        digest.update(repr((renderer.prompt(item.prompt.conversation, item.effort), truth)).encode())
        if item.turn:
            digest.update(repr(item.prompt.follow_ups[item.turn - 1]).encode())
    return digest.hexdigest()


def make_rollouts(
    settings: GrpoRun,
    session: Session,
    loaded: LoadedModel,
    items: list[Item],
    renderer: Renderer,
    rewards: Rewards,
    toolkit: Toolkit,
) -> Rollouts:
    """What samples and scores; every rollout is kept in `rollouts.jsonl` of the run folder."""
    rollout = settings.rollout
    engine: Engine = Sampler(loaded, batch_rows=rollout.batch)
    if rollout.engine != "transformers":
        engine = following_engine(settings, session.path / "engine")
    return Rollouts(
        items,
        renderer,
        engine,
        rewards,
        EpisodeLimits(rollout.action_tokens, rollout.completion_tokens, rollout.calls),
        rollout.temperature,
        settings.grpo.group,
        settings.seed,
        None if toolkit.empty else toolkit,
        session.path / "rollouts.jsonl" if session.folder is not None else None,
        process_number(),
        gather_object,
    )
