"""Paired differences against scipy, and the plain words about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from counterpoint.configs.errors import DataError
from counterpoint.train.evals.compare import compare, sign_test


def rows(scores: Any, effort: str = "low", task: str = "t", **more: Any) -> list[dict[str, Any]]:
    """A row for each sample; `scores` holds one number an item, or a list of samples."""
    return [
        {"task": task, "id": f"i{n}", "effort": effort, "sample": k, "score": value, "violations": [], **more}
        for n, samples in enumerate(scores)
        for k, value in enumerate(samples if isinstance(samples, Sequence) else [samples])
    ]


def first(a: Any, b: Any) -> Any:
    return compare(a, b).differences[0]


def test_the_difference_is_scipy_s_paired_t() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(40), rng.random(40)
    found = first(rows(a.tolist()), rows(b.tolist())).difference
    paired = stats.ttest_rel(b, a)
    interval = paired.confidence_interval(0.95)
    assert found.value == pytest.approx((b - a).mean())
    assert found.standard_error == pytest.approx(stats.sem(b - a))
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_an_item_at_three_efforts_is_one_cluster() -> None:
    rng = np.random.default_rng(2)
    scores = {side: rng.random((30, 3)) for side in "ab"}

    def side(name: str) -> list[dict[str, Any]]:
        return [
            row
            for k, effort in enumerate(("low", "medium", "high"))
            for row in rows(scores[name][:, k].tolist(), effort=effort)
        ]

    found = compare(side("a"), side("b"))
    overall, *by_effort = [d for d in found.differences if d.metric == "score"]
    per_item = (scores["b"] - scores["a"]).mean(axis=1)
    assert (overall.items, overall.difference.n_clusters) == (90, 30)
    assert overall.difference.standard_error == pytest.approx(stats.sem(per_item))
    assert [d.effort for d in by_effort] == ["low", "medium", "high"]
    assert by_effort[1].b == pytest.approx(scores["b"][:, 1].mean())


@pytest.mark.parametrize(("plus", "minus"), [(0, 0), (1, 0), (6, 0), (3, 9), (20, 20), (600, 540), (900, 700)])
def test_the_sign_test_is_scipy_s(plus: int, minus: int) -> None:
    expected = stats.binomtest(plus, plus + minus).pvalue if plus + minus else 1.0
    assert sign_test(plus, minus) == pytest.approx(expected, abs=1e-4)


def test_a_clear_difference_is_told_and_a_small_sample_told_to_be_small() -> None:
    better = first(rows([0.0] * 20 + [1.0] * 20), rows([1.0] * 30 + [0.0] * 2 + [1.0] * 8))
    assert better.told == "better"
    assert better.sentence.startswith("B is 45.0 points better (95 % interval +")
    few = first(rows([0, 1] * 15), rows([1, 1] + [0, 1] * 14))
    assert few.told == "unclear"
    assert few.sentence.startswith("Too few items to tell: B is 3.3 points better")
    assert few.detectable == pytest.approx(0.229, abs=5e-4)
    assert "30 independent items show differences of 22.9 points and more" in few.sentence


def test_a_handful_of_items_needs_the_exact_test() -> None:
    assert first(rows([0] * 5), rows([1] * 5)).told == "unclear", "p = 0.06, whatever the interval says"
    assert first(rows([0] * 6), rows([1] * 6)).told == "better"
    one = first(rows([0]), rows([1]))
    assert one.told == "unclear"
    assert one.sentence.startswith("One item shows nothing")
    same = first(rows([1] * 30), rows([1] * 30))
    assert (same.told, same.p_sign) == ("same", 1.0)


def test_flips_are_named_and_left_out_items_counted() -> None:
    a = rows([1, 0, [1, 1, 0], 1, 1]) + rows([1], task="only a")
    b = rows([0, 1, [0, 1, 0], 1]) + rows([1, 1], task="only b")
    b[-3]["prompt_hash"] = "other"
    found = compare(a, b)
    assert [(flip.id, flip.b) for flip in found.flips["score"]] == [("i0", 0), ("i1", 1), ("i2", pytest.approx(1 / 3))]
    assert (found.items, found.only_a, found.only_b, found.changed) == (3, 2, 2, 1)


def test_channels_are_compared_where_nothing_has_a_truth() -> None:
    broken = [{"code": "truncated"}]
    found = compare(rows([None] * 8, violations=broken), rows([None] * 8))
    assert [d.metric for d in found.differences] == ["correct"]
    assert (found.differences[0].a, found.differences[0].b, found.differences[0].told) == (0, 1, "better")
    json.dumps(found.as_dict(), allow_nan=False)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(DataError, match="no item is in both"):
        compare(rows([1]), rows([1], effort="high"))
    with pytest.raises(DataError, match="prompts differ"):
        compare(rows([1], prompt_hash="a"), rows([1], prompt_hash="b"))
