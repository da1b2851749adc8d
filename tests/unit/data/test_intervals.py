"""Statistics against scipy, published numbers, and simulation-free identities."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from counterpoint.data.intervals import (
    clustered_standard_error,
    mean_at_k,
    mean_estimate,
    minimal_detectable_difference,
    pass_at_k,
    pass_hat_k,
    share_estimate,
    student_t_quantile,
    wilson,
)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_is_scipys(successes: int, failures: int, confidence: float) -> None:
    n = successes + failures
    low, high = wilson(successes, n, confidence)
    if n == 0:
        assert (low, high) == (0.0, 1.0)
        return
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


def test_wilson_at_the_ends_is_exact() -> None:
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0
    assert wilson(0, 50)[1] == pytest.approx(0.0713476, abs=1e-7)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (1, 0)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_the_smallest_detectable_difference_is_the_published_one() -> None:
    points = {n: round(100 * minimal_detectable_difference(n), 1) for n in (30, 100, 200, 500, 1000)}
    assert points == {30: 22.9, 100: 12.5, 200: 8.9, 500: 5.6, 1000: 4.0}
    with pytest.raises(ValueError, match="at least one"):
        minimal_detectable_difference(0)


def test_a_difference_of_that_size_is_found_with_the_power_asked_for() -> None:
    n, discordance = 400, 0.2
    difference = minimal_detectable_difference(n, discordance)
    better, worse = (discordance + difference) / 2, (discordance - difference) / 2
    rng = np.random.default_rng(0)
    wins = rng.multinomial(n, [better, worse, 1 - discordance], size=20_000)
    z = (wins[:, 0] - wins[:, 1]) / np.sqrt(wins[:, 0] + wins[:, 1])
    assert np.mean(z > stats.norm.ppf(0.975)) == pytest.approx(0.8, abs=0.02)


values = st.lists(st.floats(-5, 5), min_size=2, max_size=40)


@given(values)
def test_without_clusters_it_is_the_ordinary_standard_error(x: list[float]) -> None:
    assert clustered_standard_error(x) == pytest.approx(stats.sem(x), abs=1e-12)


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 5)), min_size=2, max_size=40))
def test_a_clustered_error_is_the_formula_pair_by_pair(rows: list[tuple[float, int]]) -> None:
    x, c = [v for v, _ in rows], [k for _, k in rows]
    n, g, mean = len(x), len(set(c)), sum(x) / len(x)
    found = clustered_standard_error(x, [f"item {k}" for k in c])
    if g < 2:
        assert math.isnan(found)
        return
    pairs = sum((x[i] - mean) * (x[j] - mean) for i in range(n) for j in range(n) if c[i] == c[j])
    assert found == pytest.approx(math.sqrt(max(pairs, 0) * g / (g - 1)) / n, abs=1e-9)


@given(values, st.integers(2, 5))
def test_copies_of_an_answer_add_no_certainty(x: list[float], copies: int) -> None:
    clustered = clustered_standard_error(x * copies, [*range(len(x))] * copies)
    assert clustered == pytest.approx(clustered_standard_error(x), abs=1e-12)


@given(values)
def test_an_estimates_interval_is_scipys(x: list[float]) -> None:
    found = mean_estimate(x, confidence=0.9)
    assert (found.n, found.n_clusters) == (len(x), len(x))
    assert found.value == pytest.approx(np.mean(x))
    if found.standard_error > 1e-9:
        expected = stats.t.interval(0.9, len(x) - 1, loc=np.mean(x), scale=stats.sem(x))
        assert (found.low, found.high) == pytest.approx(expected, abs=1e-8)


def test_one_cluster_has_a_mean_and_no_interval() -> None:
    found = mean_estimate([1.0, 0.0], ["a", "a"])
    assert (found.value, found.n, found.n_clusters) == (0.5, 2, 1)
    assert math.isnan(found.standard_error)
    assert math.isnan(found.low)
    with pytest.raises(ValueError, match="no values"):
        mean_estimate([])
    with pytest.raises(ValueError, match="2 values and 1 clusters"):
        mean_estimate([1.0, 2.0], ["a"])


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    answers = [True] * right + [False] * (n - right)
    subsets = [any(chosen) for chosen in combinations(answers, k)]
    assert pass_at_k(n, right, k) == pytest.approx(sum(subsets) / len(subsets))


def test_pass_and_mean_at_k() -> None:
    assert pass_at_k(200, 10, 1) == pytest.approx(0.05)
    assert mean_at_k([[1, 0], [1, 1, 1], [0]]) == pytest.approx(0.5)
    for n, right, k in ((4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(n, right, k)
    with pytest.raises(ValueError, match="without samples"):
        mean_at_k([[1.0], []])


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 10, 29, 100, 1999, 2000])
@pytest.mark.parametrize("probability", [0.005, 0.3, 0.5, 0.9, 0.975, 0.9995])
def test_students_t_is_scipys(probability: float, degrees: int) -> None:
    expected = stats.t.ppf(probability, degrees)
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("degrees", [2001, 10_000, 10**6])
def test_students_t_of_many_degrees_is_near_scipys(degrees: int) -> None:
    assert student_t_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-6)


@pytest.mark.parametrize(("items", "samples", "rate", "alike"), [
    (30, 3, 0.5, 0.6), (30, 8, 0.8, 0.6), (100, 3, 0.8, 0.2), (100, 8, 0.5, 0.9), (100, 8, 0.8, 0.9), (100, 3, 0.95, 0.6),
])  # fmt: skip
def test_intervals_of_samples_that_share_prompts_cover_what_they_say(
    items: int, samples: int, rate: float, alike: float
) -> None:
    """93 to 97 % of the intervals hold the true rate; those of pooled samples 52 to 84 %."""
    rng, spread = np.random.default_rng(1), (1 - alike) / alike
    clusters = np.repeat(np.arange(items), samples)
    held = pooled = 0
    for _ in range(1000):
        chance = rng.beta(rate * spread, (1 - rate) * spread, items)
        values = (rng.random((items, samples)) < chance[:, None]).astype(float).ravel()
        found = share_estimate(values.tolist(), clusters.tolist())
        low, high = wilson(int(values.sum()), len(values))
        held, pooled = held + (found.low <= rate <= found.high), pooled + (low <= rate <= high)
    assert 0.93 <= held / 1000 <= 0.97
    assert pooled / 1000 < 0.9


@pytest.mark.parametrize(("items", "samples", "k", "rate", "alike"), [
    (30, 8, 4, 0.3, 0.4), (30, 8, 8, 0.5, 0.5), (50, 4, 4, 0.5, 0.6), (100, 8, 2, 0.7, 0.8), (100, 16, 8, 0.4, 0.3),
])  # fmt: skip
def test_intervals_of_pass_at_k_and_pass_hat_k_cover_what_they_say(
    items: int, samples: int, k: int, rate: float, alike: float
) -> None:
    """93 to 97 % of the intervals hold the true value, of prompts that are right by chances drawn from a beta."""
    rng, spread = np.random.default_rng(3), (1 - alike) / alike
    a, b = rate * spread, (1 - rate) * spread
    true_hat = math.prod((a + i) / (a + b + i) for i in range(k))
    true_at = 1 - math.prod((b + i) / (a + b + i) for i in range(k))
    at_k, hat_k = ([of(samples, each, k) for each in range(samples + 1)] for of in (pass_at_k, pass_hat_k))
    held = {"at": 0, "hat": 0}
    for _ in range(1000):
        right = rng.binomial(samples, rng.beta(a, b, items)).tolist()
        at, hat = (share_estimate([of[each] for each in right]) for of in (at_k, hat_k))
        held["at"] += at.low <= true_at <= at.high
        held["hat"] += hat.low <= true_hat <= hat.high
    assert all(0.93 <= each / 1000 <= 0.97 for each in held.values()), held


@given(st.integers(1, 60), st.data())
def test_one_answer_a_prompt_has_wilsons_interval(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    found = share_estimate([1.0] * right + [0.0] * (n - right))
    assert (found.low, found.high) == pytest.approx(wilson(right, n))


def test_samples_of_one_prompt_say_little() -> None:
    assert share_estimate([1.0] * 40, ["a"] * 40).low == pytest.approx(wilson(1, 1)[0])
    assert share_estimate([1.0] * 40, [n // 4 for n in range(40)]).low < wilson(10, 10)[0]
