"""The rows of a checkpoint's run: some to calibrate a rounding on, others to judge an export by.

Legend: ids are real ids; trained are the indices of the tokens that have a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random
from typing import Any

import numpy as np

from counterpoint.configs.errors import CounterpointError, ModelError
from counterpoint.configs.schema import DpoRun, SftRun, TrainingRun
from counterpoint.data.conversation import Conversation
from counterpoint.data.dataset.build import build_training_sets
from counterpoint.data.dataset.pair_sets import build_pair_sets
from counterpoint.data.dataset.pairs import Pair
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import Vocabulary

Row = tuple[np.ndarray, np.ndarray]
MAX_SEQUENCES = 24
HELD_OUT = 64
"""Training rows that are left out of the calibration and judged by, where the run has no held-out ones."""
MOST_HELD_OUT = 256
TOKENS = 1 << 17
"""Of the rows that a rounding is calibrated on."""


@dataclass(frozen=True)
class RunRows:
    """training: ids to calibrate on. held_out: rows to judge by. source: what those are, for a person. missing: why
    there are no rows of the run, "" where there are."""

    training: Sequence[np.ndarray]
    held_out: Sequence[Row]
    source: str
    missing: str = ""


def run_rows(run: TrainingRun | None, vocabulary: Vocabulary, tokens: int = TOKENS) -> RunRows:
    """Rows of the run's files, as it rendered them; the package's example rows where there are none of the run."""
    try:
        training, held_out = _read(run, vocabulary)
    except CounterpointError as error:
        return RunRows((), example_rows(vocabulary), "example rows of the package", str(error))
    source = "data.valid"
    order = list(range(len(training)))
    Random(0).shuffle(order)
    if not held_out:
        source = "training rows that the rounding has not seen"
        kept = min(HELD_OUT, len(order) // 2)
        held_out, order = [training[i] for i in sorted(order[:kept])], order[kept:]
    chosen, total = [], 0
    for i in order:
        if total >= tokens:
            break
        chosen.append(training[i][0])
        total += len(training[i][0])
    return RunRows(chosen, _evenly(held_out, MOST_HELD_OUT), source)


def example_rows(vocabulary: Vocabulary) -> list[Row]:
    """The first turns of the packaged example data, in the model's vocabulary."""
    renderer = Renderer(vocabulary)
    out: list[Row] = []
    for item in read_conversations(["example:quickstart"]):
        if isinstance(item, Conversation):
            out += [(e.ids, np.flatnonzero(e.weights > 0)) for e in renderer.examples(item)]
        if len(out) >= MAX_SEQUENCES:
            return out[:MAX_SEQUENCES]
    return out


def _read(run: TrainingRun | None, vocabulary: Vocabulary) -> tuple[list[Row], list[Row]]:
    """(training, held out); CounterpointError where the run has none, or its files are gone."""
    if isinstance(run, SftRun):
        data = run.data.model_copy(update={"tree": False, "pack_tokens": None})
        sets = build_training_sets(data, vocabulary, seed=run.seed)
        rows = (sets.train.rows, *(held_out.rows for held_out in sets.held_out.values()))
        training, *held_out = ([_plain(row) for row in each] for each in rows)
        return training, list(chain.from_iterable(held_out))
    if isinstance(run, DpoRun):
        pairs = build_pair_sets(run.data, run.dpo, vocabulary, seed=run.seed)
        training, *held_out = (_wanted(found.pairs) for found in (pairs.train, *pairs.held_out.values()))
        return training, list(chain.from_iterable(held_out))
    raise ModelError("its run trained on rollouts, which are not kept" if run is not None else "its run is not known")


def _plain(row: Any) -> Row:
    return row.ids, np.unique(row.target_source[row.target_weight > 0]) + 1


def _wanted(pairs: Sequence[Any]) -> list[Row]:
    """The wanted side of each pair, the rated completions that are wanted."""
    out = []
    for each in pairs:
        ids, mask = (each.chosen_ids, each.chosen_mask) if isinstance(each, Pair) else (each.ids, each.mask)
        if isinstance(each, Pair) or each.wanted:
            trained = len(each.prompt_ids) + np.flatnonzero(np.asarray(mask))
            out.append((np.asarray([*each.prompt_ids, *ids]), trained))
    return out


def _evenly(rows: Sequence[Row], count: int) -> list[Row]:
    return [rows[len(rows) * i // count] for i in range(count)] if len(rows) > count else list(rows)
