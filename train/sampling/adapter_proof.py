"""Does a server sample with the adapter that it was given: fixed texts scored by it and by the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.sample import inference

MOST_DIFFERENT = 0.05
"""Largest mean |difference| of log-probabilities between a server's kernels and the trainer's, in nats."""
TOLD_APART = 0.01
"""From this mean |difference| on the trainer's scores with and without the adapter tell the two apart."""
PROBES, PROBE_TOKENS = 4, 128
"""How many texts are scored, and at most how many tokens of each: a few requests that cost no time."""

Scores = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class OwnScores:
    """The trainer's log-probabilities of each probe's tokens from the second on, with its adapter and without."""

    probes: Sequence[Sequence[int]]
    tuned: Scores
    base: Scores


def own_scores(model: Any, loaded: LoadedModel, probes: Sequence[Sequence[int]]) -> OwnScores:
    """Of `model`, the live one. Collective where it is sharded."""
    with inference(model):
        tuned = [_scores(model, loaded, ids) for ids in probes]
        off = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
        with off:
            base = [_scores(model, loaded, ids) for ids in probes]
    return OwnScores(probes, tuned, base)


def _scores(model: Any, loaded: LoadedModel, ids: Sequence[int]) -> list[float]:
    rows = torch.from_numpy(np.asarray(loaded.vocabulary_map.rows(list(ids)), dtype=np.int64))[None]
    rows = rows.to(next(model.parameters()).device)
    logits = model(input_ids=rows, use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, rows[0, 1:, None])[:, 0].cpu().tolist()


def why_refused(own: OwnScores, tuned: Scores, base: Scores) -> str:
    """tuned, base: a server's scores of the probes' tokens, with the adapter and without. Empty where it may count."""
    to_tuned, to_base = _apart(own.tuned, tuned), _apart(own.tuned, base)
    if to_tuned >= to_base and _apart(own.tuned, own.base) >= TOLD_APART:
        return (
            f"the adapter does not act there: fixed texts are {to_tuned:.3f} nats off the trainer with it and "
            f"{to_base:.3f} without"
        )
    if not to_tuned < MOST_DIFFERENT:  # or no number at all
        return (
            f"it scores fixed texts {to_tuned:.3f} nats off the trainer with the adapter and {to_base:.3f} without, "
            f"{MOST_DIFFERENT} at the most: is it the same base model in the same number format?"
        )
    return ""


def _apart(own: Scores, other: Scores) -> float:
    """Mean |difference| over the tokens that both have a score of; NaN where there is none."""
    pairs = [pair for mine, its in zip(own, other, strict=True) for pair in zip(mine, its, strict=True)]
    found = [abs(mine - its) for mine, its in pairs if mine is not None and its is not None]
    return sum(found) / len(found) if found else float("nan")
