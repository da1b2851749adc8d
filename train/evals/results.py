"""Numbers of an evaluation, from the lines of samples.jsonl: by task and effort, with errors clustered by item.

A sample that was cut, or whose scorer failed, counts as 0, and is counted. A rollout that is invalid says nothing of
the model: it is in no number but the count of samples and its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.intervals import Estimate, pass_at_k, pass_hat_k, share_estimate
from counterpoint.train.evals.channels import Rate
from counterpoint.train.evals.rollout_numbers import (
    RolloutNumbers,
    cluster_of,
    is_valid,
    plain_estimate,
    rollout_numbers,
)

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One task at one effort.

    right: samples that score 1, of those with a truth. mean_at_k: mean score over items and samples; pass_at: from k to
    the share of items that one of k samples gets right (pass_at[1] counts only what is entirely right), pass_hat: that
    all of k samples get right (tau-bench's pass^k), over the items with k valid samples; None and empty where no item
    has a truth. rollouts: of items that are rolled out. failed: scorers that
    raised, hung or gave no number. truncated: samples that were cut. tokens, analysis_tokens, final_tokens, seconds:
    means a sample. Standard errors are clustered by item (or by the cluster that the item names).
    """

    task: str
    effort: str
    items: int
    samples: int
    right: Rate
    mean_at_k: Estimate | None
    pass_at: Mapping[int, Estimate]
    pass_hat: Mapping[int, Estimate]
    correct: Rate
    violations: Mapping[str, int]
    failed: int
    truncated: int
    tokens: float
    analysis_tokens: float
    final_tokens: float
    seconds: float | None
    rollouts: RolloutNumbers | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain types for results.json."""
        return {
            **{name: getattr(self, name) for name in ("task", "effort", "items", "samples", "failed", "truncated")},
            "right": self.right.as_dict(),
            "mean_at_k": None if self.mean_at_k is None else plain_estimate(self.mean_at_k),
            "pass_at": {str(k): plain_estimate(estimate) for k, estimate in self.pass_at.items()},
            "pass_hat": {str(k): plain_estimate(estimate) for k, estimate in self.pass_hat.items()},
            "correct": self.correct.as_dict(),
            "violations": dict(self.violations),
            "tokens": {"all": self.tokens, "analysis": self.analysis_tokens, "final": self.final_tokens},
            "seconds": self.seconds,
            "rollouts": None if self.rollouts is None else self.rollouts.as_dict(),
        }


def cells(rows: Iterable[Row]) -> list[Cell]:
    """A cell for each task and effort, tasks in the order of the rows, efforts from low to high."""
    by: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by[row["task"], row["effort"]].append(row)
    tasks = dict.fromkeys(task for task, _ in by)
    return [cell(by[task, effort]) for task in tasks for effort in EFFORTS if (task, effort) in by]


def cell(rows: Sequence[Row]) -> Cell:
    """The numbers of rows of one task and effort. ValueError for none."""
    if not rows:
        raise ValueError("no samples: give at least one")
    scored = [row for row in rows if row["score"] is not None]
    valid = [row for row in rows if is_valid(row)]
    times = [row.get("seconds") for row in rows]
    return Cell(
        task=rows[0]["task"],
        effort=rows[0]["effort"],
        items=len({row["id"] for row in rows}),
        samples=len(rows),
        right=Rate.of([row["score"] == 1 for row in scored], [cluster_of(row) for row in scored]),
        mean_at_k=share_estimate([row["score"] for row in scored], [cluster_of(row) for row in scored])
        if scored
        else None,
        pass_at=passes(scored, pass_at_k),
        pass_hat=passes(scored, pass_hat_k),
        correct=Rate.of([not row["violations"] for row in valid], [cluster_of(row) for row in valid]),
        violations=_codes(valid),
        failed=sum(row["outcome"] == "failed" for row in scored),
        truncated=sum(row["stop"] == "length" for row in valid),
        tokens=_mean(len(row["ids"]) for row in valid),
        analysis_tokens=_mean(row["tokens"]["analysis"] for row in valid),
        final_tokens=_mean(row["tokens"]["final"] for row in valid),
        seconds=_mean(time for time in times if time is not None) if None not in times else None,
        rollouts=rollout_numbers(rows),
    )


def passes(scored: Sequence[Row], of: Callable[[int, int, int], float]) -> dict[int, Estimate]:
    """pass@k or pass^k for k = 1, 2, 4, ... up to the most samples that an item has, over the items with k; an answer
    is right where it scores 1. of: from an item's samples, those that are right, and k to its share, unbiased."""
    right: dict[str, list[bool]] = defaultdict(list)
    cluster: dict[str, str] = {}
    for row in scored:
        right[row["id"]].append(row["score"] == 1)
        cluster[row["id"]] = cluster_of(row)
    most = max(map(len, right.values()), default=0)
    out: dict[int, Estimate] = {}
    for k in (2**n for n in range(most.bit_length())):
        found = {id: samples for id, samples in right.items() if len(samples) >= k}
        shares = [of(len(samples), sum(samples), k) for samples in found.values()]
        out[k] = share_estimate(shares, [cluster[id] for id in found])
    return out


def _codes(rows: Sequence[Row]) -> dict[str, int]:
    """Samples with each code; a code counts once a sample."""
    found = Counter(code for row in rows for code in {violation["code"] for violation in row["violations"]})
    return dict(found.most_common())


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return float(np.mean(given)) if given else 0.0
