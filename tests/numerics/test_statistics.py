"""Intervals and pass@k against closed forms, enumeration and known tables."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.core.seeding import rng
from sdpo_mlx.core.statistics import _student, average, clustered, mean_pass_at_k, paired, pass_at_k, wilson

COUNTS = st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_agrees_with_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 5_000), st.floats(0, 1))
def test_wilson_contains_the_share_and_mirrors(n: int, share: float) -> None:
    successes = round(share * n)
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_knows_nothing_without_observations() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


@given(COUNTS)
def test_pass_at_k_equals_the_enumeration_of_all_subsets(counts: tuple[int, int, int]) -> None:
    n, correct, k = counts
    subsets = list(combinations(range(n), k))
    exact = sum(any(i < correct for i in subset) for subset in subsets) / len(subsets)
    assert pass_at_k(n, correct, k) == pytest.approx(exact, abs=1e-12)


def test_pass_at_k_stays_finite_for_many_samples() -> None:
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)
    assert mean_pass_at_k([(4, 4), (4, 0)], 2) == 0.5
    assert math.isnan(mean_pass_at_k([], 1))


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(n, correct, k)


def test_average_weighs_problems_equally() -> None:
    assert average([[1.0], [0.0, 0.0, 0.0], []]) == 0.5
    assert math.isnan(average([]))


def test_clustered_is_wider_than_treating_samples_as_independent() -> None:
    draw = rng("clusters")
    rows = [[float(draw.random() < share)] * 16 for share in draw.random(40)]
    low, high = clustered(rows, seed=1)
    alone = wilson(sum(map(sum, rows)), 16 * 40)
    assert low < average(rows) < high
    assert high - low > 3 * (alone.high - alone.low)


def test_clustered_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = rng("coverage")
    hits = 0
    for trial in range(100):
        rows = [list((draw.random(4) < share).astype(float)) for share in draw.random(40)]
        low, high = clustered(rows, seed=trial, resamples=300)
        hits += low <= 0.5 <= high
    assert 87 <= hits <= 100


@pytest.mark.parametrize("n", [8, 16])
def test_few_problems_are_covered_as_often_as_it_says(n: int) -> None:
    """Plain percentiles hold the truth in 91 % of such draws of 8 problems."""
    draw, trials = rng("few", n), 200
    hits = 0
    for trial in range(trials):
        rows = [list((draw.random(4) < share).astype(float)) for share in draw.beta(0.7, 0.7, n)]
        low, high = clustered(rows, seed=trial, resamples=300)
        hits += low <= 0.5 <= high
    assert 0.93 <= hits / trials <= 0.99


def test_paired_covers_a_true_difference_as_often_as_it_says() -> None:
    draw, hits = rng("paired coverage"), 0
    for trial in range(50):
        shares = draw.random(12) * 0.8
        first, second = (
            [list((draw.random(4) < share).astype(float)) for share in each] for each in (shares, shares + 0.2)
        )
        low, high = paired(first, second, seed=trial)[1]
        hits += low <= 0.2 <= high
    assert 45 <= hits <= 50


@pytest.mark.parametrize(("freedom", "known"), [(3, 3.1824), (7, 2.3646), (15, 2.1314), (63, 1.9983)])
def test_students_quantile_agrees_with_its_table(freedom: int, known: float) -> None:
    assert _student(1.959964, freedom) == pytest.approx(known, rel=0.01)


def test_paired_never_claims_certainty_from_a_clean_sweep() -> None:
    nothing, everything = [[0.0, 0.0]] * 8, [[1.0, 1.0]] * 8
    low = 2 * wilson(8, 8).low - 1
    assert paired(nothing, everything, seed=0) == (1.0, (low, 1.0))
    assert paired(everything, nothing, seed=0) == (-1.0, (-1.0, -low))
    assert math.isnan(paired(nothing[:1], everything[:1], seed=0)[1].low)


def test_clustered_repeats_with_its_seed_and_differs_with_another() -> None:
    rows = [list(map(float, row)) for row in rng("rows").random((30, 4))]
    assert clustered(rows, seed=3) == clustered(rows, seed=3)
    assert clustered(rows, seed=3) != clustered(rows, seed=4)


def test_clustered_never_claims_certainty_from_a_clean_sweep() -> None:
    assert clustered([[1.0, 1.0]] * 10, seed=0) == wilson(10, 10)
    assert clustered([[0.0, 0.0]] * 10, seed=0) == wilson(0, 10)
    assert all(map(math.isnan, clustered([[0.5]], seed=0)))


def test_paired_finds_a_small_steady_gain_that_the_scores_alone_hide() -> None:
    first = [[share] for share in rng("pairs").random(50)]
    second = [[score + 0.05 + 0.01 * (i % 3)] for i, (score,) in enumerate(first)]
    difference, (low, high) = paired(first, second, seed=0)
    assert 0.05 < low < difference < high < 0.07
    with pytest.raises(ValueError, match="same problems"):
        paired(first, second[1:], seed=0)
