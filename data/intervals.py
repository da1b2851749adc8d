"""Intervals and differences for rates and means: pure functions, checked against scipy in the tests.

Sources: Wilson (1927) for rates; Miller (2024), "Adding Error Bars to Evals", for errors clustered by item and paired
differences; Chen et al. (2021), section 2.1, for pass@k.

Shapes: N = answers, one a sample; answers to the same item share a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error and interval; n answers in n_clusters clusters."""

    value: float
    standard_error: float
    low: float
    high: float
    n: int
    n_clusters: int


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate; (0, 1) for n = 0."""
    if not 0 <= successes <= n:
        raise ValueError(f"successes {successes} of n {n}: give 0 <= successes <= n")
    if n == 0:
        return 0.0, 1.0
    return _wilson(successes / n, n, _z(confidence))


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 0.0 if p == 0 else max(0.0, centre - half), 1.0 if p == 1 else min(1.0, centre + half)


def clustered_standard_error(values_N: Sequence[float], clusters_N: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean, answers of one cluster being dependent; nan for less than two clusters.

    sqrt(sum over clusters of (sum of deviations)^2) / n, times sqrt(c / (c - 1)) for c clusters; with one answer a
    cluster it is the ordinary standard error.
    """
    x_N = np.asarray(values_N, dtype=np.float64)
    index_N, n_clusters = _clusters(len(x_N), clusters_N)
    if n_clusters < 2:
        return math.nan
    sums = np.bincount(index_N, weights=x_N - x_N.mean(), minlength=n_clusters)
    return float(np.sqrt(np.square(sums).sum() * n_clusters / (n_clusters - 1)) / len(x_N))


def share_estimate(
    values_N: Sequence[float], clusters_N: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Estimate:
    """Mean of values in [0, 1] with Wilson's interval at the effective number of answers: n over the design effect (the
    clustered variance over that of independent answers), times (z / t)^2 for few clusters. One answer a cluster is
    Wilson's own interval. The size of answers that are right or not is n at most; shares between, such as an item's
    pass@k, spread less, and may have a larger one, two clusters being counted as if they were right or not. Source:
    Korn and Graubard (1998), "Confidence intervals for proportions", for the effective size; Dean and Pagano (2015) for
    Wilson's interval at it.
    """
    if not len(values_N):
        raise ValueError("no values: give at least one")
    value = min(1.0, max(0.0, float(np.mean(np.asarray(values_N, dtype=np.float64)))))
    error = clustered_standard_error(values_N, clusters_N)
    n, (_, n_clusters) = len(values_N), _clusters(len(values_N), clusters_N)
    size, whole = float(n_clusters), set(values_N) <= {0, 1}
    if n_clusters == n and whole:
        size = float(n)
    elif n_clusters > 1:
        if error > 0 and 0 < value < 1:
            size = value * (1 - value) / (error * error)
            if whole:
                size = min(float(n), size * n / (n - 1))
            else:  # few shares may not have shown how far they spread
                size = 1 / ((1 - 2 / n_clusters) / size + 2 / n_clusters / (n_clusters - 1))
        size *= (_z(confidence) / student_t_quantile(0.5 + confidence / 2, n_clusters - 1)) ** 2
    low, high = _wilson(value, size, _z(confidence))
    return Estimate(value, error, low, high, n, n_clusters)


def mean_estimate(
    values_N: Sequence[float], clusters_N: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Estimate:
    """Mean with clustered standard error; the interval takes Student's t with (clusters - 1) degrees of freedom."""
    if not len(values_N):
        raise ValueError("no values: give at least one")
    error = clustered_standard_error(values_N, clusters_N)
    _, n_clusters = _clusters(len(values_N), clusters_N)
    value = float(np.mean(np.asarray(values_N, dtype=np.float64)))
    half = student_t_quantile(0.5 + confidence / 2, n_clusters - 1) * error if n_clusters > 1 else math.nan
    return Estimate(value, error, value - half, value + half, len(values_N), n_clusters)


def minimal_detectable_difference(
    n: int, discordance: float = 0.2, power: float = 0.8, significance: float = 0.05
) -> float:
    """The smallest difference of two rates on the same n items that a two-sided test finds with `power`.

    discordance: share of items on which the two disagree, the variance of a paired difference under no effect.
    22.9 points at n = 30, 4.0 at n = 1000.
    """
    if n < 1:
        raise ValueError(f"n {n}: give at least one item")
    return (_z(1 - significance) + NormalDist().inv_cdf(power)) * math.sqrt(discordance / n)


def mean_at_k(correct: Sequence[Sequence[float]]) -> float:
    """Mean over items of the mean over an item's samples; items without samples raise ValueError."""
    if not correct or any(len(samples) == 0 for samples in correct):
        raise ValueError("an item without samples: give at least one sample an item")
    return float(np.mean([np.mean(samples) for samples in correct]))


def pass_at_k(n: int, n_correct: int, k: int) -> float:
    """Unbiased estimate, from n samples of which n_correct are right, that one of k samples is right."""
    if not (0 <= n_correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n_correct} right among {n}: give 0 <= n_correct <= n and 1 <= k <= n")
    if n - n_correct < k:
        return 1.0
    return 1.0 - math.prod((n - n_correct - i) / (n - i) for i in range(k))


def pass_hat_k(n: int, n_correct: int, k: int) -> float:
    """Unbiased estimate, from n samples of which n_correct are right, that all of k samples are right (pass^k).

    Source: Yao et al. (2024), tau-bench.
    """
    if not (0 <= n_correct <= n and 1 <= k <= n):
        raise ValueError(f"pass^{k} of {n_correct} right among {n}: give 0 <= n_correct <= n and 1 <= k <= n")
    return math.comb(n_correct, k) / math.comb(n, k)


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t by bisection; exact to 1e-9 up to 2000 degrees, to 1e-6 above."""
    if degrees < 1 or not 0 < probability < 1:
        raise ValueError(f"Student's t: probability {probability}, degrees {degrees}: give 0 < p < 1, degrees >= 1")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while _t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _t_cdf(middle, degrees) < probability else (low, middle)
    return high


def _t_cdf(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0 by the finite series in the angle (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(theta), math.sin(theta)
    if degrees > 2000:  # the series takes one term for two degrees; the normal is off by less than 1e-3 / degrees here
        return NormalDist().cdf(t * (1 - 1 / (4 * degrees)) / math.sqrt(1 + t * t / (2 * degrees)))
    if degrees % 2:
        term, total = cosine, 0.0
        for i in range(1, degrees - 1, 2):
            total += term
            term *= cosine * cosine * (i + 1) / (i + 2)
        return 0.5 + (theta + sine * total) / math.pi
    term, total = 1.0, 0.0
    for i in range(0, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (i + 1) / (i + 2)
    return 0.5 + sine * total / 2


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: give a number between 0 and 1")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _clusters(n: int, clusters_N: Sequence[Hashable] | None) -> tuple[npt.NDArray[np.int64], int]:
    if clusters_N is None:
        return np.arange(n), n
    if len(clusters_N) != n:
        raise ValueError(f"{n} values and {len(clusters_N)} clusters: give one cluster a value")
    numbers: dict[Hashable, int] = {}
    index_N = np.array([numbers.setdefault(c, len(numbers)) for c in clusters_N], dtype=np.int64)
    return index_N, len(numbers)
