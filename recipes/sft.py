"""Supervised fine-tuning: conversations in, an adapter (or a whole model) out, measured before, during and after.

Reads top to bottom: folder and lock, data, model, adapter, trainer, training, result, report.
"""

from __future__ import annotations

import torch
from transformers import set_seed

from counterpoint.configs.dump import plain
from counterpoint.configs.schema import SftRun
from counterpoint.data.dataset.training_rows import TrainingData, build_training_rows
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.layout.collate import Collator
from counterpoint.recipes.steps import BAD_ROWS, add_measurements, prepare_model, train_to_end
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.callbacks import AttachmentProof, HeldOutLoss
from counterpoint.train.loop.sft_trainer import CounterpointTrainer
from counterpoint.train.loop.training_arguments import loop_settings, sft_arguments, total_steps
from counterpoint.train.model.load import LoadedModel, load_vocabulary_of
from counterpoint.train.run.session import Session, open_session
from counterpoint.train.run.signals import StopSignal
from counterpoint.train.run.world import rows_per_step
from counterpoint.train.scoring.prompts import load_prompts


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
        prompts = load_prompts(settings.eval.prompts, settings.data)
        identity = Identity(plain(settings), train.fingerprint, rows_per_step(settings))
        session.began(identity, steps, allow_changes=overwrite)

        set_seed(settings.seed)
        loaded = prepare_model(settings, session)
        trainer = make_trainer(settings, session, loaded, train, identity, stop)
        if valid is not None:
            trainer.add_callback(HeldOutLoss(trainer, valid.rows, settings.eval.every, settings.eval.at_start))
        renderer = Renderer(loaded.vocabulary, settings.data)
        hook = add_measurements(settings, session, loaded, trainer, renderer, prompts)
        return train_to_end(settings, session, loaded, trainer, hook, steps, train.report.n_bad)


def read_data(settings: SftRun, session: Session) -> tuple[TrainingData, TrainingData | None]:
    """Training and held-out rows. Bad rows go to `bad_rows.jsonl` in the run folder, counts to the terminal."""
    vocabulary = load_vocabulary_of(settings.model)
    bad_rows = session.path / BAD_ROWS if session.folder is not None else None
    train = build_training_rows(settings.data.train, settings.data, vocabulary, quarantine=bad_rows)
    for line in [*train.lines(), *(f"  {message}" for message in train.report.bad_messages)]:
        session.say(line)
    if not settings.data.valid:
        return train, None
    return train, build_training_rows(settings.data.valid, settings.data, vocabulary)


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
