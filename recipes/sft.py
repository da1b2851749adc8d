"""Supervised fine-tuning: conversations in, an adapter (or a whole model) out, measured before, during and after.

Reads top to bottom: folder and lock, data, model, trainer, training with its result and report.
"""

from __future__ import annotations

from counterpoint.configs.schema import SftRun
from counterpoint.data.dataset.training_rows import TrainingData, build_training_rows
from counterpoint.data.layout.collate import Collator
from counterpoint.recipes.steps import BAD_ROWS, Prepared, prepare, train_to_end
from counterpoint.train.loop.callbacks import AttachmentProof, HeldOutLoss
from counterpoint.train.loop.sft_trainer import CounterpointTrainer
from counterpoint.train.loop.training_arguments import loop_settings, sft_arguments, total_steps
from counterpoint.train.model.load import load_vocabulary_of
from counterpoint.train.run.session import Session, open_session
from counterpoint.train.scoring.prompts import load_prompts
from counterpoint.train.serving.probes import TOOLS_FILE, write_tools


def run(settings: SftRun, resume: str | None = None, overwrite: bool = False) -> int:
    """Train as `settings` say. 0 when done, 143 or 130 when SIGTERM or Ctrl-C ended it with a checkpoint.

    resume: None, `newest` (the newest run folder of this name), a run folder, or a checkpoint in one. overwrite: start
    anew in the newest folder of this name; with `resume`, continue although settings changed.
    """
    with open_session(settings, resume, overwrite) as session:
        train, valid = read_data(settings, session)
        steps = total_steps(settings, len(train.rows))
        prompts = load_prompts(settings.eval.prompts, settings.data)
        prepared = prepare(settings, session, train.fingerprint, steps, prompts)
        trainer = make_trainer(settings, session, prepared, train)
        if valid is not None:
            trainer.add_callback(HeldOutLoss(trainer, valid.rows, settings.eval.every, settings.eval.at_start))
        return train_to_end(settings, session, prepared, trainer, train.report.n_bad)


def read_data(settings: SftRun, session: Session) -> tuple[TrainingData, TrainingData | None]:
    """Training and held-out rows. Bad rows go to `bad_rows.jsonl` in the run folder, counts to the terminal."""
    vocabulary = load_vocabulary_of(settings.model)
    bad_rows = session.path / BAD_ROWS if session.folder is not None else None
    train = build_training_rows(settings.data.train, settings.data, vocabulary, quarantine=bad_rows)
    for line in [*train.lines(), *(f"  {message}" for message in train.report.bad_messages)]:
        session.say(line)
    if train.tools and session.folder is not None:
        write_tools(session.path, train.tools.values())
        session.say(f"{len(train.tools)} rewritten tools, as clients must send them: {session.path / TOOLS_FILE}")
    if not settings.data.valid:
        return train, None
    return train, build_training_rows(settings.data.valid, settings.data, vocabulary)


def make_trainer(settings: SftRun, session: Session, prepared: Prepared, train: TrainingData) -> CounterpointTrainer:
    mapping = prepared.loaded.vocabulary_map
    return CounterpointTrainer(
        prepared.loaded.model,
        sft_arguments(settings, session.path, len(train.rows)),
        train.rows,
        Collator(None if mapping.is_identity else mapping.rows, prepared.loaded.pad_row),
        loop_settings(settings, session.path),
        prepared.identity,
        callbacks=[AttachmentProof()],
        extras=mapping.save,
        warn=session.warn,
        stop=session.stop,
    )
