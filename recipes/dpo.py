"""Learning from pairs: a wanted and an unwanted completion behind the same prompt, given or built; or from completions
that are rated one by one.

Reads top to bottom: folder and lock, pairs, model, adapter, trainer, training, result, report.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import set_seed

from counterpoint.configs.dump import plain
from counterpoint.configs.schema import DpoRun
from counterpoint.data.dataset.pairs import PairData, build_pairs, build_rated
from counterpoint.data.harmony.render import Renderer
from counterpoint.recipes.steps import BAD_ROWS, add_measurements, prepare_model, train_to_end
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.callbacks import AttachmentProof
from counterpoint.train.loop.preference_trainers import PreferenceTrainer, RatedTrainer
from counterpoint.train.loop.rl_arguments import dpo_arguments, kto_arguments, steps_of
from counterpoint.train.loop.training_arguments import loop_settings
from counterpoint.train.model.load import LoadedModel, load_vocabulary_of
from counterpoint.train.run.session import Session, open_session
from counterpoint.train.run.signals import StopSignal
from counterpoint.train.run.world import rows_per_step
from counterpoint.train.scoring.prompts import load_prompts


def run(settings: DpoRun, resume: str | None = None, overwrite: bool = False) -> int:
    """Train as `settings` say; arguments and exit codes as of `recipes.sft.run`."""
    if settings.train.threads is not None:
        torch.set_num_threads(settings.train.threads)
    with StopSignal() as stop, open_session(settings, resume, overwrite) as session:
        session.say(f"run folder  {session.path}")
        pairs = read_pairs(settings, session)
        steps = steps_of(settings, len(pairs.pairs), rows_per_step(settings))
        prompts = load_prompts(settings.eval.prompts, settings.data)
        identity = Identity(plain(settings), pairs.fingerprint, rows_per_step(settings))
        session.began(identity, steps, allow_changes=overwrite)

        set_seed(settings.seed)
        loaded = prepare_model(settings, session)
        trainer = make_trainer(settings, session, loaded, pairs, steps, identity, stop)
        renderer = Renderer(loaded.vocabulary, settings.data)
        hook = add_measurements(settings, session, loaded, trainer, renderer, prompts)
        return train_to_end(settings, session, loaded, trainer, hook, steps)


def read_pairs(settings: DpoRun, session: Session) -> PairData[Any]:
    """The pairs or rated completions; bad rows go to `bad_rows.jsonl` in the run folder, counts to the terminal."""
    build: Any = build_rated if settings.dpo.rated else build_pairs
    found = build(
        settings.data.train,
        settings.data,
        settings.dpo,
        load_vocabulary_of(settings.model),
        seed=settings.seed,
        quarantine=session.path / BAD_ROWS if session.folder is not None else None,
    )
    for line in found.lines():
        session.say(line)
    return found


def make_trainer(
    settings: DpoRun,
    session: Session,
    loaded: LoadedModel,
    pairs: PairData[Any],
    steps: int,
    identity: Identity,
    stop: StopSignal,
) -> PreferenceTrainer | RatedTrainer:
    loop = loop_settings(settings, session.path)
    rest: Any = {"callbacks": [AttachmentProof()], "extras": loaded.vocabulary_map.save, "stop": stop}
    if settings.dpo.rated:
        args = kto_arguments(settings, session.path, steps)
        return RatedTrainer(loaded, args, pairs.pairs, loop, identity, shuffle=settings.data.shuffle, **rest)
    return PreferenceTrainer(loaded, dpo_arguments(settings, session.path, steps), pairs.pairs, loop, identity, **rest)
