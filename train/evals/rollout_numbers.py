"""Numbers of rollouts, from the lines of samples.jsonl: turns, calls, faults, how they ended, and what they earned.

What is invalid is counted apart, and is in no other number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from counterpoint.data.intervals import Estimate, mean_estimate, share_estimate
from counterpoint.train.evals.channels import Rate

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RolloutNumbers:
    """Of the rollouts of one task at one effort. invalid: of all; the rest of those that are valid. turns, calls: means
    a rollout. faults: calls that failed, of all calls, those of a prompt being dependent. ended: rollouts by how they
    ended (`Episode.stop`). rewards: means by name, the weighted sum as `reward`, clustered by prompt; within 0 and 1
    with Wilson's interval, else with Student's. judge_tokens: that judges have taken, those of cached answers aside."""

    invalid: Rate
    turns: float
    calls: float
    faults: Rate
    ended: Mapping[str, int]
    rewards: Mapping[str, Estimate]
    judge_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "invalid": self.invalid.as_dict(),
            "turns": self.turns,
            "calls": self.calls,
            "faults": self.faults.as_dict(),
            "ended": dict(self.ended),
            "rewards": {name: plain_estimate(estimate) for name, estimate in self.rewards.items()},
            "judge_tokens": self.judge_tokens,
        }


def is_valid(row: Row) -> bool:
    return not row.get("invalid")


def cluster_of(row: Row) -> str:
    return str(row.get("cluster") or row["id"])


def rewards_of(row: Row) -> dict[str, float]:
    """What a rollout earned by name, and the weighted sum as `reward`; empty for one that is invalid."""
    if not is_valid(row):
        return {}
    total = {} if row.get("reward") is None else {"reward": float(row["reward"])}
    return {**total, **(row.get("rewards") or {})}


def rollout_numbers(rows: Sequence[Row]) -> RolloutNumbers | None:
    """None for rows that were answered at once."""
    rows = [row for row in rows if "ended" in row]
    if not rows:
        return None
    valid = [row for row in rows if is_valid(row)]
    calls = [(called["fault"] is not None, cluster_of(row)) for row in valid for called in row["called"]]
    names = dict.fromkeys(name for row in valid for name in rewards_of(row))
    if len(names) == 2 and "reward" in names and all(_is_alone(row) for row in valid):
        del names["reward"]  # the sum of one
    return RolloutNumbers(
        invalid=Rate.of([not is_valid(row) for row in rows], [cluster_of(row) for row in rows]),
        turns=sum(row["turns"] for row in valid) / max(1, len(valid)),
        calls=len(calls) / max(1, len(valid)),
        faults=Rate.of([fault for fault, _ in calls], [cluster for _, cluster in calls]),
        ended=dict(Counter(row["ended"] for row in valid).most_common()),
        rewards={name: _mean(name, valid) for name in names},
        judge_tokens=sum(row.get("judge_tokens", 0) for row in rows),
    )


def _is_alone(row: Row) -> bool:
    return set(rewards_of(row).values()) == {row.get("reward")}


def _mean(name: str, rows: Sequence[Row]) -> Estimate:
    found = [(earned[name], cluster_of(row)) for row in rows if name in (earned := rewards_of(row))]
    values, clusters = [value for value, _ in found], [cluster for _, cluster in found]
    within = all(0 <= value <= 1 for value in values)
    return (share_estimate if within else mean_estimate)(values, clusters)


def plain_estimate(estimate: Estimate) -> dict[str, Any]:
    """Plain types; JSON has no NaN: the standard error of a single item is null."""
    return {name: None if value != value else value for name, value in asdict(estimate).items()}
