"""What rewards differ by between base and tuned, paired by prompt as scores are (`compare`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from counterpoint.data.intervals import Estimate
from counterpoint.train.evals.compare import Told, paired_estimate
from counterpoint.train.evals.rollout_numbers import Row, cluster_of, plain_estimate, rewards_of


@dataclass(frozen=True, slots=True)
class RewardDifference:
    """One reward of one task, over its efforts. base, tuned: means over items at an effort, samples averaged first;
    difference: tuned minus base, clustered by prompt."""

    task: str
    reward: str
    items: int
    base: float
    tuned: float
    difference: Estimate
    told: Told

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "difference": plain_estimate(self.difference)}


def reward_differences(base: Sequence[Row], tuned: Sequence[Row]) -> list[RewardDifference]:
    """Of every task and reward with items on both sides, in the order of the tuned rows."""
    before, after = _means(base), _means(tuned)
    out: list[RewardDifference] = []
    for (task, reward), items in after.items():
        known = before.get((task, reward), {})
        keys = [key for key in items if key in known]
        if not keys:
            continue
        pairs = [(known[key], items[key]) for key in keys]
        found, told = paired_estimate(pairs, [cluster for cluster, _, _ in keys])
        count = len(pairs)
        means = sum(a for a, _ in pairs) / count, sum(b for _, b in pairs) / count
        out.append(RewardDifference(task, reward, count, *means, found, told))
    return out


_Item = tuple[str, str, str]


def _means(rows: Sequence[Row]) -> Mapping[tuple[str, str], Mapping[_Item, float]]:
    """From each task and reward to the mean of each item (cluster, id, effort)."""
    values: dict[tuple[str, str], dict[_Item, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name, value in rewards_of(row).items():
            values[row["task"], name][cluster_of(row), row["id"], row["effort"]].append(value)
    return {key: {item: sum(found) / len(found) for item, found in items.items()} for key, items in values.items()}
