"""The pairs, or rated completions, that are trained and that are held out, kept apart as rows are (`split`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint.configs.preference_section import DpoSettings
from counterpoint.configs.schema import PairSettings
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.dataset.pairs import PairData, build_pairs, build_rated, fingerprint_of
from counterpoint.data.dataset.split import PROMPT, Mask, Side, by_share, share_line, without_overlap
from counterpoint.data.harmony.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class PairSets:
    """By the name of its set ("" for one without). lines: how they were kept apart."""

    train: PairData[Any]
    held_out: Mapping[str, PairData[Any]]
    lines: Sequence[str]


def build_pair_sets(
    data: PairSettings,
    dpo: DpoSettings,
    vocabulary: Vocabulary,
    *,
    seed: int,
    evaluation: Mapping[int, str] | None = None,
    quarantine: Path | None = None,
    held_out_quarantine: Path | None = None,
) -> PairSets:
    """`data.train` and `data.valid`; evaluation: `RowKeys.asked` of each prompt that is sampled -> its name. Errors as
    of `build_pairs`."""
    build: Any = build_rated if dpo.rated else build_pairs
    train: PairData[Any] = build(data.train, data, dpo, vocabulary, seed=seed, quarantine=quarantine)
    held_out: dict[str, PairData[Any]] = {}
    lines: list[str] = []
    if data.valid_share is not None:
        (name,) = data.valid_sets
        held = by_share(_side(train).keys[:, PROMPT], data.valid_share, seed)
        held_out[name] = _once(_only(train, held))
        lines.append(share_line(int(held.sum()), len(held), data.valid[0].path, seed, f"{train.noun}s"))
        train = _only(train, ~held)
    else:
        for name, sources in data.valid_sets.items():
            held_out[name] = build(sources, data, dpo, vocabulary, seed=seed, quarantine=held_out_quarantine)
    if held_out or evaluation:
        sides = {name: _side(found) for name, found in held_out.items()}
        kept = without_overlap(_side(train), sides, evaluation or {}, data.overlap)
        train = _only(train, kept.train)
        held_out = {name: _only(found, kept.held_out[name]) for name, found in held_out.items()}
        lines += kept.lines
    return PairSets(train, held_out, lines)


def _side(found: PairData[Any]) -> Side:
    keys = np.array(found.keys, dtype=np.uint64).reshape(-1, 3)
    return Side(keys, lambda n: found.pairs[n].source)


def _only(found: PairData[Any], kept: Mask) -> PairData[Any]:
    if kept.all():
        return found
    pairs = [pair for pair, keep in zip(found.pairs, kept.tolist(), strict=True) if keep]
    keys = [key for key, keep in zip(found.keys, kept.tolist(), strict=True) if keep]
    return replace(found, pairs=pairs, keys=keys, fingerprint=fingerprint_of(pairs))


def _once(found: PairData[Any]) -> PairData[Any]:
    """Held-out pairs of a split, each once, whatever the weight of its source; bad rows stay with the training data."""
    first: dict[object, int] = {}
    for number, pair in enumerate(found.pairs):
        first.setdefault((pair.source, pair.kind, *map(tuple, pair.parts())), number)
    pairs, keys = [found.pairs[n] for n in first.values()], [found.keys[n] for n in first.values()]
    report = RowCounter(rows=len({pair.source for pair in pairs}))
    return replace(found, pairs=pairs, keys=keys, report=report, fingerprint=fingerprint_of(pairs))
