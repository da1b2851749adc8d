"""Supervised fine-tuning: conversations in, an adapter (or a whole model) out, measured before, during and after.

Reads top to bottom: folder and lock, data, model, adapter, trainer, training, result, report.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainerCallback, set_seed

from counterpoint.configs.dump import plain
from counterpoint.configs.schema import SftRun
from counterpoint.data.batches.collate import Collator
from counterpoint.data.build import TrainingData, build_training_rows
from counterpoint.train.adapters.attach import attach_lora, attachment_table
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.arguments import loop_settings, rows_per_step, sft_arguments, total_steps
from counterpoint.train.loop.callbacks import AttachmentProof, HeldOutLoss, RunLog
from counterpoint.train.loop.session import Session, open_session
from counterpoint.train.loop.stop import StopSignal
from counterpoint.train.loop.trainer import CounterpointTrainer
from counterpoint.train.model.load import LoadedModel, device_of, load_model, load_vocabulary_of
from counterpoint.train.model.paths import use_paths


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
        trainer = make_trainer(settings, session, loaded, train, valid, identity, stop)
        checkpoint = session.checkpoint
        session.say(f"{steps} steps" + (f", going on from step {checkpoint.step}" if checkpoint else ""))
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        if trainer.stopped:
            return stopped_early(session, trainer, stop)

        result = session.path / ("adapter" if settings.lora.enabled else "model")
        trainer.save_final(result)
        session.ended("finished", step=trainer.state.global_step)
        report(session, result)
    return 0


def read_data(settings: SftRun, session: Session) -> tuple[TrainingData, TrainingData | None]:
    """Training and held-out rows. Bad rows go to `bad_rows.jsonl` in the run folder, counts to the terminal."""
    vocabulary = load_vocabulary_of(settings.model)
    bad_rows = session.path / "bad_rows.jsonl" if session.folder is not None else None
    train = build_training_rows(settings.data.train, settings.data, vocabulary, quarantine=bad_rows)
    for line in train.report.lines():
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
    valid: TrainingData | None,
    identity: Identity,
    stop: StopSignal,
) -> CounterpointTrainer:
    """The trainer with what happens around its steps."""
    mapping = loaded.vocabulary_map
    collate = Collator(None if mapping.is_identity else mapping.rows, loaded.pad_row)
    callbacks: list[TrainerCallback] = [AttachmentProof()]
    if session.folder is not None:
        callbacks.append(RunLog(session.folder, session.tracker, session.progress))
    held_out = HeldOutLoss(valid.rows, collate, settings.eval.every, settings.eval.at_start) if valid else None
    trainer = CounterpointTrainer(
        loaded.model,
        sft_arguments(settings, session.path, len(train.rows)),
        train.rows,
        collate,
        loop_settings(settings, session.path),
        identity,
        callbacks=[*callbacks, *([held_out] if held_out else [])],
        extras=mapping.save,
        warn=session.warn,
        stop=stop,
    )
    if held_out is not None:
        held_out.trainer = trainer
    return trainer


def stopped_early(session: Session, trainer: CounterpointTrainer, stop: StopSignal) -> int:
    step = trainer.state.global_step
    session.ended("stopped", step=step)
    session.say(f"stopped at step {step}, with a checkpoint; go on with\n  {resume_command(session.path)}")
    return stop.exit_code or 143


def report(session: Session, result: Path) -> None:
    """Where everything is, and what to type next."""
    session.say(f"{result.name:<11} {result}\nmetrics     {session.path / 'metrics.jsonl'}")


def resume_command(path: Path) -> str:
    return f"counterpoint train {path / 'config.yaml'} --resume {path}"
