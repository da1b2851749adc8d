"""Learning from rewards: groups of rollouts, with tools where the run file names them, scored on the typed result.

Reads top to bottom: folder and lock, tools, rewards, prompts, model, trainer, training with its result and report.
"""

from __future__ import annotations

from contextlib import ExitStack

from accelerate.utils import gather_object

from counterpoint.configs.environment_section import AnyEnvironment
from counterpoint.configs.errors import ConfigError
from counterpoint.configs.schema import GrpoRun
from counterpoint.data.harmony.render import Renderer
from counterpoint.recipes.grpo_prompts import fingerprint, held_out_items, read_sets, training_items
from counterpoint.recipes.steps import Prepared, add_held_out, prepare, train_to_end
from counterpoint.train.checkpoints.start import with_start
from counterpoint.train.episodes.environments import Environments
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.episodes.routes import Routes
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.foreign.choose import Chosen, open_environments
from counterpoint.train.loop.callbacks import AttachmentProof
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.grpo_trainer import RewardTrainer
from counterpoint.train.loop.rl_arguments import grpo_arguments, policy_settings, sampled_groups, steps_of
from counterpoint.train.loop.teacher import load_teacher
from counterpoint.train.loop.training_arguments import loop_settings
from counterpoint.train.model.load import device_of, load_vocabulary_of
from counterpoint.train.run.first_sight import FirstSight
from counterpoint.train.run.session import Session, open_session
from counterpoint.train.run.world import process_number
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.sampling.weight_sync import check_engine, following_engine
from counterpoint.train.scoring.prompts import load_prompts
from counterpoint.train.scoring.rewards import Rewards


def run(settings: GrpoRun, resume: str | None = None, overwrite: bool = False) -> int:
    """Train as `settings` say; arguments and exit codes as of `recipes.sft.run`."""
    settings = with_start(settings)
    with (
        open_session(settings, resume, overwrite) as session,
        Toolkit.of(settings.tools) as toolkit,
        Rewards(settings.rewards, environment=settings.rollout.in_environments) as rewards,
        ExitStack() as stack,
    ):
        environments = _environments(settings, stack, toolkit)
        for note in toolkit.notes:
            session.warn(note)
        if (idle := settings.grpo.idle_clip) is not None:
            session.warn(
                f"grpo.{idle} never clips: with grpo.iterations: 1 rollouts are learned from once, at a ratio of 1"
            )
        renderer = Renderer(load_vocabulary_of(settings.model), settings.data)
        groups = sampled_groups(settings)
        prompts = load_prompts(settings.eval.prompts)
        sets = read_sets(settings, renderer, toolkit, prompts)
        items = training_items(settings, sets, session, renderer, rewards, groups)
        held_out = held_out_items(settings, sets, session, renderer, rewards)
        check_engine(settings)
        steps = steps_of(settings, len(items), groups)
        prepared = prepare(settings, session, fingerprint(items, renderer), steps, prompts)
        rollout = settings.rollout
        engine: Engine = Sampler(prepared.loaded, batch_rows=rollout.batch, truncation=Truncation.of(rollout))
        if settings.rollout.engine != "transformers":
            engine = following_engine(settings, session.path / "engine")
        rollouts = Rollouts(
            items,
            renderer,
            engine,
            rewards,
            EpisodeLimits(
                settings.rollout.action_tokens,
                settings.rollout.completion_tokens,
                settings.rollout.calls,
                settings.data.max_tokens,
            ),
            settings.rollout.temperature,
            settings.grpo.group,
            settings.seed,
            None if toolkit.empty else toolkit,
            session.path / "rollouts.jsonl" if session.folder is not None else None,
            process_number(),
            gather=gather_object,  # of every process, once its part of a step's rollouts is sampled
            seen=FirstSight(session.warn),
            environments=environments,
        )
        trainer = make_trainer(settings, session, prepared, rollouts)
        if held_out:
            add_held_out(settings, session, trainer, lambda: trainer.held_out(held_out))
        return train_to_end(settings, session, prepared, trainer)


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


def make_trainer(settings: GrpoRun, session: Session, prepared: Prepared, rollouts: Rollouts) -> RewardTrainer:
    teacher = settings.grpo.teacher
    trainer = RewardTrainer(
        prepared.loaded,
        grpo_arguments(settings, session.path, prepared.steps),
        rollouts,
        policy_settings(settings, len(rollouts.items)),
        loop_settings(settings, session.path),
        prepared.identity,
        extras=prepared.loaded.vocabulary_map.save,
        stop=session.stop,
        teacher=teacher and load_teacher(teacher, device_of(settings.train.device)),
    )
    trainer.add_callback(AttachmentProof(lambda: trainer.taught))
    return trainer
