"""Which rows are trained and which are held out: a share that is split off, and rows that stand on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from counterpoint.configs.data_section import Overlap
from counterpoint.configs.errors import DataError

Mask = npt.NDArray[np.bool_]
PROMPT, ASKED, ROW = range(3)
"""Columns of `Side.keys`."""
_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Side:
    """Rows of one side. keys: their `RowKeys`, (rows, 3) uint64. source: where row n comes from ("file:line")."""

    keys: npt.NDArray[np.uint64]
    source: Callable[[int], str]


def by_share(prompts: npt.NDArray[np.uint64], share: float, seed: int) -> Mask:
    """Whether each row is held out. It is decided by the hash of its prompt and the seed alone, so rows of one prompt
    stay together, and neither order nor other rows matter; but one prompt at least is on each side. DataError where all
    rows have one prompt."""
    different, row = np.unique(prompts, return_inverse=True)
    if len(different) < 2:
        raise DataError(
            "data.valid: all rows have the same prompt, and rows of one prompt stay together: name a file of held-out "
            "rows instead of a share"
        )
    drawn = _mixed(different, seed)
    held = drawn < np.uint64(min(int(share * 2**64), 2**64 - 1))
    if not held.any():
        held[drawn.argmin()] = True
    elif held.all():
        held[drawn.argmax()] = False
    return held[row]


def _mixed(keys: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """splitmix64 of each key with the seed."""
    z = keys + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Kept:
    """Which rows stay on each side, and what is told."""

    train: Mask
    held_out: Mapping[str, Mask]
    lines: Sequence[str]


def without_overlap(train: Side, held_out: Mapping[str, Side], evaluation: Mapping[int, str], overlap: Overlap) -> Kept:
    """Rows that stand on both sides, on the one that `overlap` names. evaluation: `RowKeys.asked` of each prompt that
    is sampled -> its name."""
    lines: list[str] = []
    keep = np.ones(len(train.keys), dtype=bool)
    kept = {name: np.ones(len(side.keys), dtype=bool) for name, side in held_out.items()}
    for name, side in held_out.items():
        twins = _twins(side)
        both = np.isin(train.keys[:, ROW], side.keys[:, ROW])
        if not both.any():
            continue
        where = f"the held-out data{f' {name}' if name else ''}"
        told = _told(train, both, lambda key, twins=twins: twins[key], ROW, where)
        if overlap == "train":
            kept[name] = ~np.isin(side.keys[:, ROW], train.keys[:, ROW])
            if not kept[name].any():
                raise DataError(f"{told}: nothing is left to hold out: set data.overlap: both, or name other rows")
            lines.append(f"{told}: trained, and left out of it (data.overlap: train)")
        else:
            lines.append(told + _side_taken(keep, both, overlap))
    asked = np.isin(train.keys[:, ASKED], np.array([*evaluation], dtype=np.uint64))
    if asked.any():
        told = _told(train, asked, lambda key: evaluation[key], ASKED, "the evaluation's prompts")
        if overlap == "train":
            lines.append(f"{told}: trained, and measured as well (data.overlap: train)")
        else:
            lines.append(told + _side_taken(keep, asked, overlap))
    for name, side in held_out.items():
        asked = np.isin(side.keys[:, ASKED], np.array([*evaluation], dtype=np.uint64))
        if asked.any():
            told = _told(side, asked, lambda key: evaluation[key], ASKED, "the evaluation's prompts", "data.valid")
            lines.append(f"{told}: measured both ways{f' ({name})' if name else ''}")
    return Kept(keep, kept, lines)


def _side_taken(keep: Mask, both: Mask, overlap: Overlap) -> str:
    """Takes rows out of training, and says so. Where none would be left, they are meant to be on both sides."""
    if overlap == "both":
        return ": on both sides (data.overlap: both)"
    if (both | ~keep).all():
        return ": that is all that is trained, so they stay on both sides"
    keep &= ~both
    return ": kept there and left out of training (data.overlap)"


def _twins(side: Side) -> dict[int, str]:
    """A name for each row's hash: that of its first row; read only where it is asked for."""
    first = dict(zip(side.keys[::-1, ROW].tolist(), range(len(side.keys) - 1, -1, -1), strict=True))
    return _Named(first, side.source)


class _Named(dict[int, str]):
    def __init__(self, first: Mapping[int, int], source: Callable[[int], str]) -> None:
        super().__init__()
        self._first, self._source = first, source

    def __missing__(self, key: int) -> str:
        return self._source(self._first[key])


def _told(side: Side, both: Mask, twin: Callable[[int], str], column: int, where: str, what: str = "data.train") -> str:
    numbers = np.flatnonzero(both)
    pairs = [(side.source(n), twin(int(side.keys[n, column]))) for n in numbers[:_SAMPLES].tolist()]
    shown = ", ".join(f"{mine} = {other}" for mine, other in pairs) + (", ..." if len(numbers) > _SAMPLES else "")
    files = Counter(side.source(n).rpartition(":")[0] for n in numbers.tolist())
    counted = f"; {', '.join(f'{name} {count:,}' for name, count in files.most_common(5))}" if len(files) > 1 else ""
    rows = f"{len(numbers):,} row{' stands' if len(numbers) == 1 else 's stand'}"
    return f"{rows} in {what} and in {where} alike ({shown}{counted})"


def share_line(held: int, rows: int, share: str, seed: int, noun: str = "rows") -> str:
    """What `by_share` did."""
    part = f"{held:,} of {rows:,} {noun} ({held / rows:.1%})"
    return f"{part} are held out by data.valid: {share} and seed {seed}; rows of one prompt stay together"
