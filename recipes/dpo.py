"""Learning from pairs: a wanted and an unwanted completion behind the same prompt, given or built; or from completions
that are rated one by one.

Reads top to bottom: folder and lock, pairs, model, trainer, training with its result and report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from counterpoint.configs.schema import DpoRun
from counterpoint.data.dataset.pair_sets import PairSets, build_pair_sets
from counterpoint.data.dataset.pairs import PairData
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
from counterpoint.train.loop.held_out import held_out_pairs
from counterpoint.train.loop.preference_trainer import PreferenceTrainer
from counterpoint.train.loop.rl_arguments import pair_tokens, preference_arguments, steps_of
from counterpoint.train.loop.training_arguments import loop_settings
from counterpoint.train.model.load import load_vocabulary_of
from counterpoint.train.run.session import Session, open_session
from counterpoint.train.run.world import rows_per_step
from counterpoint.train.scoring.prompts import EvalPrompt, load_prompts


def run(settings: DpoRun, resume: str | None = None, overwrite: bool = False) -> int:
    """Train as `settings` say; arguments and exit codes as of `recipes.sft.run`."""
    settings = with_start(settings)
    with open_session(settings, resume, overwrite) as session:
        prompts = load_prompts(settings.eval.prompts, settings.data)
        sets = read_pairs(settings, session, prompts)
        pairs, held_out = sets.train, sets.held_out
        steps = steps_of(settings, len(pairs.pairs), rows_per_step(settings))
        prepared = prepare(settings, session, pairs.fingerprint, steps, prompts)
        trainer = make_trainer(settings, session, prepared, pairs)
        if held_out:
            rows = {name: found.pairs for name, found in held_out.items()}
            add_held_out(settings, session, trainer, lambda: held_out_pairs(trainer, rows))
        n_bad = sum(found.report.n_bad for found in (pairs, *held_out.values()))
        return train_to_end(settings, session, prepared, trainer, n_bad)


def read_pairs(settings: DpoRun, session: Session, prompts: Sequence[EvalPrompt]) -> PairSets:
    """The pairs or rated completions; bad rows go to files in the run folder, counts to the terminal."""
    sets = build_pair_sets(
        settings.data,
        settings.dpo,
        load_vocabulary_of(settings.model),
        seed=settings.seed,
        evaluation=asked_by(prompts),
        quarantine=bad_rows_file(session, BAD_ROWS),
        held_out_quarantine=bad_rows_file(session, BAD_HELD_OUT),
    )
    told = {"": sets.train} | {
        f"held-out{f' {name}' if name else ''}: ": found for name, found in sets.held_out.items()
    }
    for where, found in told.items():
        for line in found.lines():
            session.say(where + line)
    for line in sets.lines:
        session.say(line)
    return sets


def make_trainer(settings: DpoRun, session: Session, prepared: Prepared, pairs: PairData[Any]) -> PreferenceTrainer:
    loaded = prepared.loaded
    return PreferenceTrainer(
        loaded,
        preference_arguments(settings, session.path, prepared.steps),
        pairs.pairs,
        settings.dpo,
        pair_tokens(settings),
        loop_settings(settings, session.path),
        prepared.identity,
        callbacks=[AttachmentProof()],
        extras=loaded.vocabulary_map.save,
        stop=session.stop,
    )
