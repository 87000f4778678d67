"""The learning rate over a run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.config import TrainConfig
from sdpo_mlx.rl.optimization import learning_rate


def rates(**options: object) -> list[float]:
    cfg = TrainConfig(**{"steps": 8, "learning_rate": 0.8, **options})  # type: ignore[arg-type]
    return [learning_rate(step, cfg) for step in range(cfg.steps)]


def test_constant_stays() -> None:
    assert rates(schedule="constant") == [0.8] * 8


def test_default_is_constant_and_falls_by_equal_steps_in_the_last_fifth() -> None:
    assert rates(steps=20) == pytest.approx([0.8] * 17 + [0.6, 0.4, 0.2])


def test_rate_is_never_negative_after_the_last_step() -> None:
    cfg = TrainConfig(steps=4, schedule="linear")
    assert [learning_rate(step, cfg) for step in (4, 5, 50)] == [0.0, 0.0, 0.0]


def test_linear_falls_by_equal_steps_and_never_reaches_zero() -> None:
    assert rates(schedule="linear") == pytest.approx([0.8 - 0.1 * step for step in range(8)])


def test_cosine_is_half_way_in_the_middle() -> None:
    found = rates(schedule="cosine")
    assert (found[0], found[4]) == (pytest.approx(0.8), pytest.approx(0.4))
    assert found == sorted(found, reverse=True)


def test_warm_up_rises_from_above_zero_and_hands_over_at_the_full_rate() -> None:
    assert rates(warmup_steps=3, schedule="constant") == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8])


@given(
    st.sampled_from(["wsd", "constant", "linear", "cosine"]),
    st.integers(1, 50),
    st.integers(0, 60),
    st.floats(0, 1, allow_subnormal=False),
)
def test_the_rate_lies_between_zero_and_the_given_one(kind: str, steps: int, warmup: int, rate: float) -> None:
    cfg = TrainConfig(steps=steps, warmup_steps=warmup, schedule=kind, learning_rate=rate)  # type: ignore[arg-type]
    found = [learning_rate(step, cfg) for step in range(steps)]
    assert all(0 <= each <= rate * (1 + 1e-12) for each in found)
    assert rate == 0 or all(each > 0 and math.isfinite(each) for each in found)
