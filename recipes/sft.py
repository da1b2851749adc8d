"""Supervised fine-tuning: conversations in, an adapter (or a whole model) out, measured before, during and after.

Reads top to bottom: folder and lock, data, model, trainer, training with its result and report.
"""

from __future__ import annotations

from counterpoint.configs.schema import SftRun
from counterpoint.data.dataset.build import build_training_rows
from counterpoint.data.dataset.rows_on_disk import TrainingData
from counterpoint.data.layout.collate import Collator
from counterpoint.recipes.steps import (
    BAD_HELD_OUT,
    BAD_ROWS,
    Prepared,
    add_held_out,
    bad_rows_file,
    prepare,
    train_to_end,
)
from counterpoint.train.checkpoints.start import with_start
from counterpoint.train.loop.callbacks import AttachmentProof
from counterpoint.train.loop.held_out import held_out_loss
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
    settings = with_start(settings)
    with open_session(settings, resume, overwrite) as session:
        train, held_out = read_data(settings, session)
        steps = total_steps(settings, len(train.rows))
        prompts = load_prompts(settings.eval.prompts, settings.data)
        prepared = prepare(settings, session, train.fingerprint, steps, prompts)
        trainer = make_trainer(settings, session, prepared, train)
        if held_out:
            sets = {name: data.rows for name, data in held_out.items()}
            add_held_out(settings, session, trainer, lambda: held_out_loss(trainer, sets))
        n_bad = sum(data.report.n_bad for data in (train, *held_out.values()))
        return train_to_end(settings, session, prepared, trainer, n_bad)


def read_data(settings: SftRun, session: Session) -> tuple[TrainingData, dict[str, TrainingData]]:
    """Training rows, and held-out rows by set. Bad rows go to files in the run folder, counts to the terminal."""
    data, vocabulary = settings.data, load_vocabulary_of(settings.model)
    train = build_training_rows(data.train, data, vocabulary, quarantine=bad_rows_file(session, BAD_ROWS))
    tell(session, train)
    if train.tools and session.folder is not None:
        write_tools(session.path, train.tools.values())
        session.say(f"{len(train.tools)} rewritten tools, as clients must send them: {session.path / TOOLS_FILE}")
    held_out: dict[str, TrainingData] = {}
    bad = bad_rows_file(session, BAD_HELD_OUT)
    for name, sources in data.valid_sets.items():
        held_out[name] = build_training_rows(sources, data, vocabulary, quarantine=bad)
        tell(session, held_out[name], f"held-out{f' {name}' if name else ''}: ")
    return train, held_out


def tell(session: Session, data: TrainingData, where: str = "") -> None:
    for line in [*data.lines(), *(f"  {message}" for message in data.report.bad_messages)]:
        session.say(where + line)


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
