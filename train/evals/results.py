"""Numbers of an evaluation, from the lines of samples.jsonl: by task and effort, with errors clustered by item.

Nothing is left out: a sample that was cut, or whose scorer failed, counts as 0, and is counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.intervals import Estimate, pass_at_k, pass_hat_k, share_estimate
from counterpoint.train.evals.channels import Rate

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One task at one effort.

    right: samples that score 1, of those with a truth. mean_at_k: mean score over items and samples; pass_at: from k to
    the share of items that one of k samples gets right (pass_at[1] counts only what is entirely right), pass_hat: that
    all of k samples get right (tau-bench's pass^k); None and empty where no item has a truth. failed: scorers that
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

    def as_dict(self) -> dict[str, Any]:
        """Plain types for results.json."""
        return {
            **{name: getattr(self, name) for name in ("task", "effort", "items", "samples", "failed", "truncated")},
            "right": self.right.as_dict(),
            "mean_at_k": None if self.mean_at_k is None else _plain(self.mean_at_k),
            "pass_at": {str(k): _plain(estimate) for k, estimate in self.pass_at.items()},
            "pass_hat": {str(k): _plain(estimate) for k, estimate in self.pass_hat.items()},
            "correct": self.correct.as_dict(),
            "violations": dict(self.violations),
            "tokens": {"all": self.tokens, "analysis": self.analysis_tokens, "final": self.final_tokens},
            "seconds": self.seconds,
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
    return Cell(
        task=rows[0]["task"],
        effort=rows[0]["effort"],
        items=len({row["id"] for row in rows}),
        samples=len(rows),
        right=Rate.of([row["score"] == 1 for row in scored], [_cluster(row) for row in scored]),
        mean_at_k=share_estimate([row["score"] for row in scored], [_cluster(row) for row in scored])
        if scored
        else None,
        pass_at=passes(scored, pass_at_k),
        pass_hat=passes(scored, pass_hat_k),
        correct=Rate.of([not row["violations"] for row in rows], [_cluster(row) for row in rows]),
        violations=_codes(rows),
        failed=sum(row["outcome"] == "failed" for row in scored),
        truncated=sum(row["stop"] == "length" for row in rows),
        tokens=_mean(len(row["ids"]) for row in rows),
        analysis_tokens=_mean(row["tokens"]["analysis"] for row in rows),
        final_tokens=_mean(row["tokens"]["final"] for row in rows),
        seconds=_mean(row["seconds"] for row in rows) if all(row.get("seconds") is not None for row in rows) else None,
    )


def passes(scored: Sequence[Row], of: Callable[[int, int, int], float]) -> dict[int, Estimate]:
    """pass@k or pass^k for k = 1, 2, 4, ... up to the least samples that an item has; an answer is right where it
    scores 1. of: from an item's samples, those that are right, and k to its share."""
    right: dict[str, list[bool]] = defaultdict(list)
    cluster: dict[str, str] = {}
    for row in scored:
        right[row["id"]].append(row["score"] == 1)
        cluster[row["id"]] = _cluster(row)
    if not right:
        return {}
    most = min(map(len, right.values()))
    ks = [2**n for n in range(most.bit_length()) if 2**n <= most]
    clusters = [cluster[id] for id in right]
    return {k: share_estimate([of(len(samples), sum(samples), k) for samples in right.values()], clusters) for k in ks}


def _cluster(row: Row) -> str:
    return str(row.get("cluster") or row["id"])


def _codes(rows: Sequence[Row]) -> dict[str, int]:
    """Samples with each code; a code counts once a sample."""
    found = Counter(code for row in rows for code in {violation["code"] for violation in row["violations"]})
    return dict(found.most_common())


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _plain(estimate: Estimate) -> dict[str, Any]:
    # JSON has no NaN: the standard error of a single item is null.
    return {name: None if value != value else value for name, value in asdict(estimate).items()}
