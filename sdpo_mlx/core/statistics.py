"""Confidence intervals of scores (Wilson, clustered bootstrap), avg@n and the unbiased pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sdpo_mlx.core.seeding import rng

RESAMPLES = 2_000
AT_ONCE = 1_000_000  # numbers drawn at once
Rows = Sequence[Sequence[float]]  # one row per problem, one score per rollout; rows may differ in length


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion; (0, 1) without observations.

    Source: E. B. Wilson, JASA 22 (1927), without continuity correction.
    """
    if not 0 <= successes <= n:
        raise ValueError("successes must lie between 0 and n")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, z2 = successes / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # the ends are exact at 0 and n; rounding must not push them past
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return Interval(low, 1.0 if successes == n else min(1.0, centre + half))


def average(rows: Rows) -> float:
    """Return avg@n: the mean over problems of the mean over rollouts; NaN without rollouts."""
    means = _means(rows)
    return float(means.mean()) if means.size else math.nan


def clustered(rows: Rows, *, seed: int, confidence: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Return the percentile bootstrap of `average` over whole problems: rollouts of one problem are not independent.

    The percentiles are further out than 2.5 and 97.5, since a small sample varies less than its population.
    If every score is 0, or every score is 1, resampling would claim certainty; the result is then Wilson's interval
    over the number of problems. Fewer than two problems give (NaN, NaN).
    """
    means = _means(rows)
    if means.size and np.all(means == means[0]) and means[0] in (0.0, 1.0):
        return wilson(int(means[0]) * means.size, int(means.size), confidence)
    return _bootstrap(means, seed, confidence, resamples)


def paired(first: Rows, second: Rows, *, seed: int, confidence: float = 0.95) -> tuple[float, Interval]:
    """Return the mean of second minus first over the same problems in the same order, with its bootstrap interval.

    If every problem went from 0 to 1, or from 1 to 0, the interval is Wilson's over their number, as in
    `clustered`.
    """
    if len(first) != len(second):
        raise ValueError("a paired difference needs the same problems on both sides")
    both = [(a, b) for a, b in zip(first, second, strict=True) if a and b]
    difference = _means([b for _, b in both]) - _means([a for a, _ in both])
    if not difference.size:
        return math.nan, Interval(math.nan, math.nan)
    mean, n = float(difference.mean()), int(difference.size)
    if n > 1 and abs(mean) == 1.0:  # the largest difference possible: all are equal
        low = 2 * wilson(n, n, confidence).low - 1
        return mean, Interval(low, 1.0) if mean > 0 else Interval(-1.0, -low)
    return mean, _bootstrap(difference, seed, confidence, RESAMPLES)


def paired_student(first: Rows, second: Rows, *, confidence: float) -> tuple[float, Interval, int]:
    """Return the mean of second minus first by problem, Student's interval, and how many problems differ.

    For confidences near 1, which a bootstrap of `RESAMPLES` cannot resolve; NaN below four problems, where the series
    of the quantile is too rough.
    """
    difference = _means(second) - _means(first)
    n, different = int(difference.size), int(np.count_nonzero(difference))
    mean = float(difference.mean()) if n else math.nan
    if n < 4:
        return mean, Interval(math.nan, math.nan), different
    half = _student(NormalDist().inv_cdf(0.5 + confidence / 2), n - 1) * float(difference.std(ddof=1)) / math.sqrt(n)
    return mean, Interval(mean - half, mean + half), different


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the unbiased probability that one of k rollouts passes, from n rollouts of which `correct` passed.

    1 - C(n - correct, k) / C(n, k), as a product that cannot overflow. Source: arXiv 2107.03374, eq. 1.
    """
    if not 0 < k <= n or not 0 <= correct <= n:
        raise ValueError("pass@k needs 0 < k <= n and 0 <= correct <= n")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """Return pass@k averaged over problems given as (n, correct); NaN without problems."""
    return math.fsum(pass_at_k(n, correct, k) for n, correct in counts) / len(counts) if counts else math.nan


def _means(rows: Rows) -> npt.NDArray[np.float64]:
    return np.array([math.fsum(row) / len(row) for row in rows if len(row)], dtype=np.float64)


def _bootstrap(means: npt.NDArray[np.float64], seed: int, confidence: float, resamples: int) -> Interval:
    if means.size < 2:
        return Interval(math.nan, math.nan)
    generator = rng("bootstrap", seed)
    # in batches, so that memory stays small with many problems
    size = max(1, min(resamples, AT_ONCE // means.size))
    counts = [min(size, resamples - begun) for begun in range(0, resamples, size)]
    drawn = np.concatenate(
        [means[generator.integers(means.size, size=(count, means.size))].mean(axis=1) for count in counts]
    )
    # The share of resamples beyond each end: a bootstrap of n is narrow by sqrt((n - 1) / n), and n - 1 degrees of
    # freedom have Student's tails. Source: T. Hesterberg, The American Statistician 69 (2015), section 5.3.
    n, normal = int(means.size), NormalDist()
    outside = normal.cdf(-math.sqrt(n / (n - 1)) * _student(normal.inv_cdf(0.5 + confidence / 2), n - 1))
    low, high = np.quantile(drawn, [outside, 1 - outside])
    return Interval(float(low), float(high))


def _student(z: float, freedom: int) -> float:
    """Return Student's quantile from the normal one by the Cornish-Fisher series (within 1 % from 3 degrees on)."""
    series = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + math.fsum(term / float(freedom**n) for n, term in enumerate(series, 1))
