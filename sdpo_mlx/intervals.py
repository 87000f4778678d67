"""How sure a score is: Wilson and clustered bootstrap intervals, avg@n, the unbiased pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sdpo_mlx.seeding import rng

RESAMPLES = 2_000
Rows = Sequence[Sequence[float]]  # a row a problem, a score a sample; rows may differ in length


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; (0, 1) where nothing was observed.

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
    """avg@n: the mean over problems of the mean over samples; NaN without a sample."""
    means = _means(rows)
    return float(means.mean()) if means.size else math.nan


def clustered(rows: Rows, *, seed: int, confidence: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap of `average` over whole problems: samples of one problem are not independent.

    Where every score is 0, or every score is 1, resampling would claim certainty; Wilson's interval over
    the number of problems stands there instead. Fewer than two problems give (NaN, NaN).
    """
    means = _means(rows)
    if means.size and np.all(means == means[0]) and means[0] in (0.0, 1.0):
        return wilson(int(means[0]) * means.size, int(means.size), confidence)
    return _bootstrap(means, seed, confidence, resamples)


def paired(first: Rows, second: Rows, *, seed: int, confidence: float = 0.95) -> tuple[float, Interval]:
    """Mean of second minus first over the same problems in the same order, with its bootstrap interval."""
    if len(first) != len(second):
        raise ValueError("a paired difference needs the same problems on both sides")
    both = [(a, b) for a, b in zip(first, second, strict=True) if a and b]
    difference = _means([b for _, b in both]) - _means([a for a, _ in both])
    if not difference.size:
        return math.nan, Interval(math.nan, math.nan)
    return float(difference.mean()), _bootstrap(difference, seed, confidence, RESAMPLES)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that one of k samples passes, unbiased from n samples of which `correct` passed.

    1 - C(n - correct, k) / C(n, k), as a product that cannot overflow. Source: arXiv 2107.03374, eq. 1.
    """
    if not 0 < k <= n or not 0 <= correct <= n:
        raise ValueError("pass@k needs 0 < k <= n and 0 <= correct <= n")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """pass@k averaged over problems given as (n, correct); NaN without problems."""
    return math.fsum(pass_at_k(n, correct, k) for n, correct in counts) / len(counts) if counts else math.nan


def _means(rows: Rows) -> npt.NDArray[np.float64]:
    return np.array([math.fsum(row) / len(row) for row in rows if len(row)], dtype=np.float64)


def _bootstrap(means: npt.NDArray[np.float64], seed: int, confidence: float, resamples: int) -> Interval:
    if means.size < 2:
        return Interval(math.nan, math.nan)
    generator = rng("bootstrap", seed)
    # one draw at a time keeps the memory at one row however many problems there are
    drawn = [means[generator.integers(means.size, size=means.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(low), float(high))
