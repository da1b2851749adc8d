"""Learning from rewards: groups of rollouts, with tools where the run file names them, scored on the typed result.

Reads top to bottom: folder and lock, tools and rewards, prompts, model, trainer, training with its result and report.
"""

from __future__ import annotations

from contextlib import ExitStack

from counterpoint.configs.errors import RunError
from counterpoint.configs.schema import GrpoRun
from counterpoint.configs.user_code import resume_command
from counterpoint.recipes.grpo_parts import make_pipeline, open_parts, rollouts_of
from counterpoint.recipes.grpo_prompts import fingerprint, held_out_items, probes_of, read_sets, training_items
from counterpoint.recipes.steps import Prepared, add_held_out, on_servers, prepare, train_to_end
from counterpoint.train.checkpoints.start import with_start
from counterpoint.train.loop.callbacks import AttachmentProof
from counterpoint.train.loop.group_pipeline import Pipeline
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.grpo_trainer import RewardTrainer
from counterpoint.train.loop.rl_arguments import grpo_arguments, policy_settings, sampled_groups, steps_of
from counterpoint.train.loop.teacher import Teacher, load_teacher
from counterpoint.train.loop.teacher_server import TeacherServer
from counterpoint.train.loop.training_arguments import loop_settings
from counterpoint.train.model.load import device_of
from counterpoint.train.run.first_sight import FirstSight
from counterpoint.train.run.gathering import patient_gather
from counterpoint.train.run.session import Session, open_session
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.following_pool import FollowingPool
from counterpoint.train.sampling.pool import NoServerError
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.sampling.weight_sync import check_engine, following_engine
from counterpoint.train.scoring.prompts import load_prompts


def run(settings: GrpoRun, resume: str | None = None, overwrite: bool = False) -> int:
    """Train as `settings` say; arguments and exit codes as of `recipes.sft.run`."""
    settings = _on_own_servers(with_start(settings))
    with open_session(settings, resume, overwrite) as session, ExitStack() as stack:
        parts = open_parts(settings, stack)
        for note in parts.toolkit.notes:
            session.warn(note)
        if (idle := settings.grpo.idle_clip) is not None and settings.rollout.ratio_to == "current":
            session.warn(
                f"grpo.{idle} never clips: with grpo.iterations: 1 rollouts are learned from once, at a ratio of 1"
            )
        groups = sampled_groups(settings)
        prompts = load_prompts(settings.eval.prompts)
        sets = read_sets(settings, parts.renderer, parts.toolkit, prompts)
        items = training_items(settings, sets, session, parts.renderer, parts.rewards, groups)
        held_out = held_out_items(settings, sets, session, parts.renderer, parts.rewards)
        check_engine(settings)
        teacher = settings.grpo.teacher
        if teacher is not None and teacher.server is not None:
            TeacherServer(teacher.server, teacher.weight).check()
        steps = steps_of(settings, len(items), groups)
        prepared = prepare(settings, session, fingerprint(items, parts.renderer), steps, prompts)
        rollout = settings.rollout
        engine: Engine = Sampler(prepared.loaded, batch_rows=rollout.batch, truncation=Truncation.of(rollout))
        if rollout.engine != "transformers":
            folder, probes = session.path / "engine", probes_of(items, parts.renderer)
            engine = following_engine(settings, folder, prepared.loaded, probes, session.say, session.warn)
        rollouts = rollouts_of(
            settings,
            parts,
            items,
            engine,
            keep=session.path / "rollouts.jsonl" if session.folder is not None else None,
            gather=patient_gather(settings.launch.sampling_timeout),
            seen=FirstSight(session.warn),
        )
        pipeline = None
        if isinstance(engine, FollowingPool):
            stack.callback(engine.close)
            pipeline = make_pipeline(settings, session, rollouts, engine, steps, stack)
        trainer = make_trainer(settings, session, prepared, rollouts, pipeline)
        if held_out:
            add_held_out(settings, session, trainer, lambda: trainer.held_out(held_out))
        return _to_end(settings, session, prepared, trainer)


def _to_end(settings: GrpoRun, session: Session, prepared: Prepared, trainer: RewardTrainer) -> int:
    """Where no server is left, the run ends with a checkpoint (RunError)."""
    try:
        served = trainer.served if on_servers(settings) else None
        return train_to_end(settings, session, prepared, trainer, served=served)
    except NoServerError as error:
        step = trainer.save_now()
        session.ended("stopped", step=step)
        if not step:
            raise
        command = resume_command(str(session.path), settings)
        raise RunError(f"{error}; there is a checkpoint of step {step}, `{command}` goes on from it") from None


def _on_own_servers(settings: GrpoRun) -> GrpoRun:
    """With the addresses of the servers that `train` has started for this run, where it has."""
    if not settings.launch.serve.servers:
        return settings
    server = settings.rollout.server.model_copy(update={"url": settings.launch.serve.urls})
    return settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"server": server})})


def _teacher(settings: GrpoRun) -> Teacher | TeacherServer | None:
    teacher = settings.grpo.teacher
    if teacher is None or teacher.server is None:
        return teacher and load_teacher(teacher, device_of(settings.train.device))
    return TeacherServer(teacher.server, teacher.weight)


def make_trainer(
    settings: GrpoRun, session: Session, prepared: Prepared, rollouts: Rollouts, pipeline: Pipeline | None = None
) -> RewardTrainer:
    trainer = RewardTrainer(
        prepared.loaded,
        grpo_arguments(settings, session.path, prepared.steps),
        rollouts,
        policy_settings(settings, len(rollouts.items)),
        loop_settings(settings, session.path),
        prepared.identity,
        extras=prepared.loaded.vocabulary_map.save,
        stop=session.stop,
        teacher=_teacher(settings),
        pipeline=pipeline,
    )
    trainer.add_callback(AttachmentProof(lambda: trainer.taught))
    return trainer
