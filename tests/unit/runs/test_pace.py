"""How often a slow machine evaluates."""

import pytest

from sdpo_mlx.runs.pace import affordable, evaluations


@pytest.mark.parametrize(
    ("evaluation", "step", "share", "every"),
    [
        (59.0, 1.0, 0.33, 10),  # nobody minds a minute
        (300.0, 60.0, 0.33, 20),  # 300 s after each 1,200 s are 20 %; after each 600 s they would be 33.3 %
        (290.0, 60.0, 0.33, 10),
        (1200.0, 60.0, 0.33, 50),
        (1200.0, 60.0, 1.0, 10),
        (1200.0, 0.0, 0.33, 10),
    ],
)
def test_evaluations_keep_to_their_share_of_the_time(evaluation: float, step: float, share: float, every: int) -> None:
    assert affordable(10, evaluation, step, share) == every
    assert affordable(0, evaluation, step, share) == 0
    if share < 1 and step and evaluation > 60:
        assert evaluation / (evaluation + every * step) <= share


def test_evaluations_to_come_include_the_last_step() -> None:
    assert evaluations(0, 10, 0) == 1
    assert evaluations(3, 10, 3) == 3
    assert evaluations(10, 10, 3) == 0
