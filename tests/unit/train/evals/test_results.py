"""Numbers by task and effort against the same numbers by hand and by scipy."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from counterpoint.data.intervals import pass_at_k, pass_hat_k
from counterpoint.train.evals.results import cell, cells, passes


def row(id: str, sample: int, score: float | None, effort: str = "low", **more: Any) -> dict[str, Any]:
    outcome = None if score is None else "right" if score == 1 else "wrong"
    tokens = {"analysis": 3, "commentary": 0, "final": 1, "other": 0}
    return {
        "task": "t", "id": id, "effort": effort, "sample": sample, "score": score, "outcome": outcome, "stop": "return",
        "violations": [], "ids": [1] * 9, "tokens": tokens, "seconds": 0.5, **more,
    }  # fmt: skip


def test_pass_at_k_is_the_mean_over_all_draws_of_k() -> None:
    scores = {"a": [1, 0, 0, 1], "b": [0, 0, 0, 1], "c": [0, 0, 0, 0]}
    rows = [row(id, n, value) for id, values in scores.items() for n, value in enumerate(values)]
    found = passes(rows, pass_at_k)
    assert list(found) == [1, 2, 4]
    for k, estimate in found.items():
        by_item = [np.mean([max(drawn) for drawn in combinations(values, k)]) for values in scores.values()]
        assert estimate.value == pytest.approx(np.mean(by_item))
        assert estimate.standard_error == pytest.approx(stats.sem(by_item))
        assert estimate.n_clusters == 3
    for k, estimate in passes(rows, pass_hat_k).items():
        by_item = [np.mean([min(drawn) for drawn in combinations(values, k)]) for values in scores.values()]
        assert estimate.value == pytest.approx(np.mean(by_item))


def test_errors_are_clustered_by_item_and_by_the_cluster_that_it_names() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 2, size=(20, 3)).astype(float)
    rows = [row(f"i{n}", k, scores[n, k]) for n in range(20) for k in range(3)]
    found = cell(rows).mean_at_k
    assert found is not None
    # Equal clusters: the clustered error is the ordinary one of the item means.
    assert found.standard_error == pytest.approx(stats.sem(scores.mean(axis=1)))
    p, size = scores.mean(), scores.mean() * (1 - scores.mean()) / stats.sem(scores.mean(axis=1)) ** 2 * 60 / 59
    size = min(60, size) * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 19)) ** 2
    centre, z = (p + 1.96**2 / 2 / size) / (1 + 1.96**2 / size), stats.norm.ppf(0.975)
    half = z / (1 + z * z / size) * np.sqrt(p * (1 - p) / size + z * z / 4 / size**2)
    assert (found.low, found.high) == (pytest.approx(centre - half, abs=1e-5), pytest.approx(centre + half, abs=1e-5))
    paired = cell([{**r, "cluster": r["id"][:2]} for r in rows]).mean_at_k
    assert paired is not None
    assert paired.n_clusters == len({f"i{n}"[:2] for n in range(20)})


def test_nothing_is_left_out() -> None:
    rows = [
        row("a", 0, 1.0),
        row("b", 0, 0.0, stop="length", outcome="missing", violations=[{"code": "truncated"}, {"code": "truncated"}]),
        row("c", 0, 0.0, outcome="failed"),
        row("d", 0, 0.5),
        row("e", 0, None),
        row("a", 0, 1.0, effort="high"),
    ]
    low, high = cells(rows)
    assert (low.effort, high.effort) == ("low", "high")
    assert (low.items, low.samples, low.failed, low.truncated) == (5, 5, 1, 1)
    assert (low.right.count, low.right.n) == (1, 4)
    assert low.mean_at_k is not None
    assert low.mean_at_k.value == 0.375
    assert low.pass_at[1].value == 0.25
    assert low.violations == {"truncated": 1}
    assert (low.correct.count, low.correct.n) == (4, 5)
    assert (low.tokens, low.analysis_tokens, low.final_tokens, low.seconds) == (9, 3, 1, 0.5)
    assert high.mean_at_k is not None
    assert json.loads(json.dumps(high.as_dict(), allow_nan=False))["mean_at_k"]["standard_error"] is None


def test_tasks_without_truth_have_no_accuracy() -> None:
    found = cell([row("a", 0, None, seconds=None)])
    assert (found.mean_at_k, found.pass_at, found.seconds) == (None, {}, None)
    with pytest.raises(ValueError, match="no samples"):
        cell([])
