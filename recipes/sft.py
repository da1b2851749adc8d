"""Supervised fine-tuning: conversations in, an adapter (or a whole model) out, measured before, during and after.

Reads top to bottom: folder and lock, data, model, trainer, training with its result and report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from counterpoint.configs.schema import SftRun
from counterpoint.data.conversation import Tool
from counterpoint.data.dataset.build import TrainingSets, load_training_sets, write_training_sets
from counterpoint.data.dataset.rows_on_disk import TrainingData
from counterpoint.data.layout.collate import Collator
from counterpoint.recipes.steps import (
    BAD_HELD_OUT,
    BAD_ROWS,
    Prepared,
    add_held_out,
    asked_by,
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
from counterpoint.train.run.once_a_node import once_a_node
from counterpoint.train.run.session import Session, open_session
from counterpoint.train.scoring.prompts import EvalPrompt, load_prompts
from counterpoint.train.serving.probes import TOOLS_FILE, write_tools


def run(settings: SftRun, resume: str | None = None, overwrite: bool = False) -> int:
    """Train as `settings` say. 0 when done, 143 or 130 when SIGTERM or Ctrl-C ended it with a checkpoint.

    resume: None, `newest` (the newest run folder of this name), a run folder, or a checkpoint in one. overwrite: start
    anew in the newest folder of this name; with `resume`, continue although settings changed.
    """
    settings = with_start(settings)
    with open_session(settings, resume, overwrite) as session:
        prompts = load_prompts(settings.eval.prompts, settings.data)
        sets = read_data(settings, session, prompts)
        train, held_out = sets.train, sets.held_out
        steps = total_steps(settings, len(train.rows))
        prepared = prepare(settings, session, train.fingerprint, steps, prompts)
        trainer = make_trainer(settings, session, prepared, train)
        if held_out:
            rows = {name: data.rows for name, data in held_out.items()}
            add_held_out(settings, session, trainer, lambda: held_out_loss(trainer, rows))
        n_bad = sum(data.report.n_bad for data in (train, *held_out.values()))
        return train_to_end(settings, session, prepared, trainer, n_bad)


def read_data(settings: SftRun, session: Session, prompts: Sequence[EvalPrompt]) -> TrainingSets:
    """Training rows, and held-out rows by set. Bad rows go to files in the run folder, counts to the terminal.

    Each machine reads the data once: its other processes take the files that the first one writes.
    """
    data, vocabulary = settings.data, load_vocabulary_of(settings.model)
    tools: dict[str, Tool] = {}

    def write(folder: Path) -> None:
        read = write_training_sets(
            folder,
            data,
            vocabulary,
            seed=settings.seed,
            evaluation=asked_by(prompts),
            quarantine=bad_rows_file(session, BAD_ROWS),
            held_out_quarantine=bad_rows_file(session, BAD_HELD_OUT),
        )
        tools.update(read.tools)

    with once_a_node(settings, session.path, write) as folder:
        sets = load_training_sets(folder)
    tell(session, sets.train)
    if tools and session.folder is not None:
        write_tools(session.path, tools.values())
        session.say(f"{len(tools)} rewritten tools, as clients must send them: {session.path / TOOLS_FILE}")
    for name, held_out in sets.held_out.items():
        tell(session, held_out, f"held-out{f' {name}' if name else ''}: ")
    for line in sets.lines:
        session.say(line)
    return sets


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
