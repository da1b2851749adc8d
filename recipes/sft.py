"""Supervised fine-tuning: conversations in, an adapter (or a whole model) out, measured before, during and after.

Reads top to bottom: folder and lock, data, model, adapter, trainer, training, result, report.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import set_seed

from counterpoint.configs.dump import plain
from counterpoint.configs.errors import RunError
from counterpoint.configs.schema import SftRun
from counterpoint.data.batches.collate import Collator
from counterpoint.data.build import TrainingData, build_training_rows, render_settings, source_options
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.adapters.attach import attach_lora, attachment_table
from counterpoint.train.adapters.routing import ExpertReport
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.evals.hook import ChannelEval, channel_verdict, read_points
from counterpoint.train.evals.prompts import load_prompts
from counterpoint.train.evals.publish import PAGE, write_report
from counterpoint.train.evals.report import run_report
from counterpoint.train.loop.arguments import loop_settings, rows_per_step, sft_arguments, total_steps
from counterpoint.train.loop.callbacks import AttachmentProof, HeldOutLoss, RunLog
from counterpoint.train.loop.session import Session, open_session
from counterpoint.train.loop.stop import StopSignal
from counterpoint.train.loop.trainer import CounterpointTrainer
from counterpoint.train.model.load import LoadedModel, device_of, load_model, load_vocabulary_of
from counterpoint.train.model.paths import use_paths

BAD_ROWS = "bad_rows.jsonl"


def run(settings: SftRun, resume: str | None = None, overwrite: bool = False) -> int:
    """Train as `settings` say. 0 when done, 143 or 130 when SIGTERM or Ctrl-C ended it with a checkpoint.

    resume: None, `newest` (the newest run folder of this name), a run folder, or a checkpoint in one. overwrite: start
    anew in the newest folder of this name; with `resume`, go on although settings changed.
    """
    if settings.train.threads is not None:
        torch.set_num_threads(settings.train.threads)
    with StopSignal() as stop, open_session(settings, resume, overwrite) as session:
        session.say(f"run folder  {session.path}")
        train, valid = read_data(settings, session)
        steps = total_steps(settings, len(train.rows))
        identity = Identity(plain(settings), train.fingerprint, rows_per_step(settings))
        session.began(identity, steps, allow_changes=overwrite)

        set_seed(settings.seed)
        loaded = prepare_model(settings, session)
        trainer = make_trainer(settings, session, loaded, train, identity, stop)
        hook = add_measurements(settings, session, loaded, trainer, valid)
        checkpoint = session.checkpoint
        session.say(f"{steps} steps" + (f", going on from step {checkpoint.step}" if checkpoint else ""))
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        if trainer.state.global_step < steps:
            return ended_early(session, trainer, hook)

        result = session.path / ("adapter" if settings.lora.enabled else "model")
        trainer.save_final(result)
        session.ended("finished", step=steps)
        if session.folder is not None:
            report(session, loaded, result, train.report.n_bad)
    return 0


def read_data(settings: SftRun, session: Session) -> tuple[TrainingData, TrainingData | None]:
    """Training and held-out rows. Bad rows go to `bad_rows.jsonl` in the run folder, counts to the terminal."""
    vocabulary = load_vocabulary_of(settings.model)
    bad_rows = session.path / BAD_ROWS if session.folder is not None else None
    train = build_training_rows(settings.data.train, settings.data, vocabulary, quarantine=bad_rows)
    for line in [*train.report.lines(), *(f"  {message}" for message in train.report.bad_messages)]:
        session.say(line)
    if not settings.data.valid:
        return train, None
    return train, build_training_rows(settings.data.valid, settings.data, vocabulary)


def prepare_model(settings: SftRun, session: Session) -> LoadedModel:
    """The model on its device, with a fresh adapter where the run trains one, on the chosen implementation."""
    loaded = load_model(settings.model, device_of(settings.train.device))
    if settings.lora.enabled:
        loaded = loaded.with_model(attach_lora(loaded.model, settings.lora))
    use_paths(loaded.model, settings.model)
    table = attachment_table(loaded.model)
    session.say(f"model {loaded.source}\n{table.text()}")
    session.tracker.scalars(0, table.as_dict())
    return loaded


def make_trainer(
    settings: SftRun,
    session: Session,
    loaded: LoadedModel,
    train: TrainingData,
    identity: Identity,
    stop: StopSignal,
) -> CounterpointTrainer:
    mapping = loaded.vocabulary_map
    return CounterpointTrainer(
        loaded.model,
        sft_arguments(settings, session.path, len(train.rows)),
        train.rows,
        Collator(None if mapping.is_identity else mapping.rows, loaded.pad_row),
        loop_settings(settings, session.path),
        identity,
        callbacks=[AttachmentProof()],
        extras=mapping.save,
        warn=session.warn,
        stop=stop,
    )


def add_measurements(
    settings: SftRun, session: Session, loaded: LoadedModel, trainer: CounterpointTrainer, valid: TrainingData | None
) -> ChannelEval | None:
    """Metrics, experts, held-out loss, and the evaluation by sampling (None where this process does not sample)."""
    evals = settings.eval
    if valid is not None:
        trainer.add_callback(HeldOutLoss(trainer, valid.rows, evals.every, evals.at_start))
    trainer.add_callback(ExpertReport(session.path, session.tracker.scalars))
    if session.folder is None:
        return None
    trainer.add_callback(RunLog(session.folder, session.tracker, session.progress))
    hook = ChannelEval(
        loaded,
        Renderer(loaded.vocabulary, render_settings(settings.data)),
        load_prompts(evals.prompts, source_options(settings.data)),
        evals,
        session.path / "eval",
        log=session.tracker,
        say=session.say,
        warn=session.warn,
        seed=settings.seed,
    )
    trainer.add_callback(hook)
    return hook


def ended_early(session: Session, trainer: CounterpointTrainer, hook: ChannelEval | None) -> int:
    """A signal, or a threshold of the evaluation (RunError), ended training before its last step."""
    step = trainer.state.global_step
    session.ended("stopped", step=step)
    command = f"counterpoint train --resume {session.path}"
    if hook is not None and hook.stopped is not None:
        raise RunError(f"{hook.stopped}: look at {hook.folder}; there is a checkpoint, `{command}` goes on from it")
    session.say(f"stopped after step {step}, with a checkpoint; go on with\n  {command}")
    return trainer.stop.exit_code or 143


def report(session: Session, loaded: LoadedModel, result: Path, n_bad: int = 0) -> None:
    """Write the page; say where everything is, what to type next, and how well the channels are kept."""
    if n_bad:
        session.warn(f"{n_bad} bad rows were set aside: see {session.path / BAD_ROWS}")
    points = read_points(session.path / "eval")
    if points:
        write_report(session.path, run_report(session.path), loaded.vocabulary)
        session.say(f"report      {session.path / PAGE}")
    session.say(f"{result.name:<11} {result}\nnext        counterpoint evaluate {session.path}")
    if verdict := channel_verdict(points):
        session.say(verdict)
