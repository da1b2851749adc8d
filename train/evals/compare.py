"""Two evaluations, item by item: what differs, by how much, and whether the number of items suffices to show it.

Items are paired by task, id and effort, an item's samples averaged first; errors are clustered, because one item at
three efforts, or three questions on one text, are not three independent items. Sources: Miller (2024), "Adding Error
Bars to Evals"; McNemar (1947) for the sign test on the items that flip.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from counterpoint.configs.errors import DataError
from counterpoint.data.conversation import EFFORTS
from counterpoint.data.intervals import Estimate, mean_estimate, minimal_detectable_difference

Row = Mapping[str, Any]
Metric = Literal["score", "correct"]
Told = Literal["better", "worse", "same", "unclear"]
ItemKey = tuple[str, str, str]

METRICS: dict[Metric, str] = {"score": "answers", "correct": "channels"}
FEW_CLUSTERS = 10
SIGNIFICANCE = 0.05

_VALUE: dict[Metric, Callable[[Row], float | None]] = {
    "score": lambda row: row["score"],
    "correct": lambda row: None if row.get("invalid") else float(not row["violations"]),
}


@dataclass(frozen=True, slots=True)
class Flip:
    """An item on whose majority of samples the two disagree; a and b are the means of its samples."""

    task: str
    id: str
    effort: str
    a: float
    b: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric over the items of one task (None: all tasks) at one effort (None: all efforts).

    a, b: means over items. difference: of b - a, clustered. detectable: the smallest difference that this many items
    detect 8 times in 10, were a fifth of them to differ. p_sign: of the sign test over clusters. told: whether these
    items show a difference.
    """

    metric: Metric
    task: str | None
    effort: str | None
    items: int
    a: float
    b: float
    difference: Estimate
    detectable: float
    p_sign: float
    told: Told
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["difference"] = {k: None if v != v else v for k, v in values["difference"].items()}
        return values


@dataclass(frozen=True, slots=True)
class Comparison:
    """differences: for each metric all items first, then by task and by effort. flips: by metric, the largest first.

    only_a, only_b: items of one side alone. changed: items whose prompt differs between the sides, excluded.
    """

    differences: tuple[Difference, ...]
    flips: Mapping[Metric, tuple[Flip, ...]]
    items: int
    only_a: int
    only_b: int
    changed: int

    def as_dict(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("items", "only_a", "only_b", "changed")}
        return {
            **counts,
            "differences": [difference.as_dict() for difference in self.differences],
            "flips": {metric: [asdict(flip) for flip in flips] for metric, flips in self.flips.items()},
        }


def compare(a: Sequence[Row], b: Sequence[Row], name: str = "B") -> Comparison:
    """Rows of samples.jsonl of two evaluations; positive differences are in favour of b, which sentences call `name`.

    DataError without a pair.
    """
    items_a, items_b = _by_item(a), _by_item(b)
    shared = [key for key in items_a if key in items_b]
    changed = {key for key in shared if _prompts(items_a[key]) != _prompts(items_b[key])}
    keys = [key for key in shared if key not in changed]
    if not keys:
        why = "their prompts differ" if changed else "no item is in both"
        raise DataError(f"nothing to compare: {why}: compare evaluations of the same tasks at the same efforts")
    differences: list[Difference] = []
    flips: dict[Metric, tuple[Flip, ...]] = {}
    for metric in METRICS:
        pairs = _pairs(keys, items_a, items_b, metric)
        if pairs:
            differences += _differences(pairs, metric, name)
            flips[metric] = _flips(pairs)
    return Comparison(
        differences=tuple(differences),
        flips=flips,
        items=len(keys),
        only_a=len(items_a) - len(shared),
        only_b=len(items_b) - len(shared),
        changed=len(changed),
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    key: ItemKey
    cluster: str
    a: float
    b: float


def _by_item(rows: Sequence[Row]) -> dict[ItemKey, list[Row]]:
    items: dict[ItemKey, list[Row]] = defaultdict(list)
    for row in rows:
        items[row["task"], row["id"], row["effort"]].append(row)
    return dict(items)


def _prompts(rows: Sequence[Row]) -> set[str]:
    return {str(row.get("prompt_hash", "")) for row in rows}


def _pairs(
    keys: Sequence[ItemKey], a: Mapping[ItemKey, list[Row]], b: Mapping[ItemKey, list[Row]], metric: Metric
) -> list[_Pair]:
    value = _VALUE[metric]
    pairs: list[_Pair] = []
    for key in keys:
        sides = [[v for row in rows if (v := value(row)) is not None] for rows in (a[key], b[key])]
        if all(sides):
            cluster = str(a[key][0].get("cluster") or key[1])
            pairs.append(_Pair(key, f"{key[0]}\n{cluster}", float(np.mean(sides[0])), float(np.mean(sides[1]))))
    return pairs


def _differences(pairs: Sequence[_Pair], metric: Metric, name: str) -> list[Difference]:
    tasks = list(dict.fromkeys(pair.key[0] for pair in pairs))
    efforts = [effort for effort in EFFORTS if any(pair.key[2] == effort for pair in pairs)]
    out = [_difference(pairs, metric, None, None, name)]
    for task in tasks if len(tasks) > 1 else ():
        out.append(_difference([p for p in pairs if p.key[0] == task], metric, task, None, name))
    for effort in efforts if len(efforts) > 1 else ():
        out.append(_difference([p for p in pairs if p.key[2] == effort], metric, None, effort, name))
    return out


def _difference(pairs: Sequence[_Pair], metric: Metric, task: str | None, effort: str | None, name: str) -> Difference:
    sides, clusters = [(pair.a, pair.b) for pair in pairs], [pair.cluster for pair in pairs]
    found, told = paired_estimate(sides, clusters)
    p, detectable = _sign_p(sides, clusters), minimal_detectable_difference(found.n_clusters)
    return Difference(
        metric=metric,
        task=task,
        effort=effort,
        items=len(pairs),
        a=float(np.mean([pair.a for pair in pairs])),
        b=float(np.mean([pair.b for pair in pairs])),
        difference=found,
        detectable=detectable,
        p_sign=p,
        told=told,
        sentence=_sentence(found, detectable, told, name),
    )


def paired_estimate(pairs: Sequence[tuple[float, float]], clusters: Sequence[str]) -> tuple[Estimate, Told]:
    """The mean difference of pairs (a, b), b - a, clustered, and whether they show one."""
    found = mean_estimate([b - a for a, b in pairs], clusters)
    return found, _told(found, _sign_p(pairs, clusters))


def _sign_p(pairs: Sequence[tuple[float, float]], clusters: Sequence[str]) -> float:
    sums: dict[str, float] = defaultdict(float)
    for (a, b), cluster in zip(pairs, clusters, strict=True):
        sums[cluster] += b - a
    return sign_test(sum(v > 1e-12 for v in sums.values()), sum(v < -1e-12 for v in sums.values()))


def sign_test(plus: int, minus: int) -> float:
    """Two-sided exact p of `plus` against `minus` under even odds (McNemar's exact test); 1 where both are 0."""
    n, k = plus + minus, min(plus, minus)
    if n == 0:
        return 1.0
    if n > 1000:  # the sum below would take long; the normal with continuity is exact to 1e-4 here
        return min(1.0, math.erfc((abs(plus - minus) - 1) / math.sqrt(2 * n)))
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def _told(found: Estimate, p_sign: float) -> Told:
    if found.standard_error == 0 and found.value == 0:
        return "same"
    if found.n_clusters < FEW_CLUSTERS or found.standard_error == 0:
        # Student's interval rests on the spread of a few items, or on none: only the exact test is left.
        told = p_sign < SIGNIFICANCE
    else:
        told = found.low > 0 or found.high < 0
    if not told:
        return "unclear"
    return "better" if found.value > 0 else "worse"


def _sentence(found: Estimate, detectable: float, told: str, name: str) -> str:
    n = found.n_clusters
    seen = f"{n} independent item{'s' * (n != 1)}"
    small = f"{seen} show{'s' * (n == 1)} differences of {_points(detectable)} and more (8 times in 10)"
    if told == "same":
        return f"They do not differ on any item; {small}."
    size = f"{_points(abs(found.value))} {'better' if found.value > 0 else 'worse'}"
    if n < 2:
        return f"One item shows nothing: {name} is {size} on it."
    interval = f"95 % interval {_signed(found.low)} to {_signed(found.high)}"
    if told == "unclear":
        return f"Too few items to tell: {name} is {size} ({interval}); {small}."
    return f"{name} is {size} ({interval}); {small}."


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def _flips(pairs: Sequence[_Pair]) -> tuple[Flip, ...]:
    flips = [Flip(*pair.key, pair.a, pair.b) for pair in pairs if (pair.a > 0.5) != (pair.b > 0.5)]
    return tuple(sorted(flips, key=lambda flip: (-abs(flip.b - flip.a), flip.task, flip.id, flip.effort)))
