"""What does not count, how rows are added up, and the numbers a sample carries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_mlx import objective
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.objective import loss_and_grad

AGGREGATIONS = ("token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "reference")


def config(**options: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"kind": "sdpo", **options})


def step(seed: int = 0, shape: tuple[int, int, int] = (3, 4, 9), drift: float = 0.3) -> list[np.ndarray]:
    """Student, teacher, ids, rollout log-probs and mask of one step."""
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(scale=1.5, size=(2, *shape))
    ids = rng.integers(shape[-1], size=shape[:2])
    rollout = np.take_along_axis(objective.log_softmax(student), ids[..., None], -1)[..., 0]
    mask = rng.random(shape[:2]) < 0.7
    mask[0] = True
    return [student, teacher, ids, rollout + rng.normal(scale=drift, size=ids.shape), mask.astype(float)]


# --- what does not count, and how it is added up ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sdpo", "hybrid"])
@pytest.mark.parametrize("support", ["top_k", "sequence"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_uncounted_rows_are_never_read(kind: str, support: str, aggregation: str) -> None:
    cfg = config(kind=kind, alpha=1.0, support=support, top_k=4, aggregation=aggregation)
    arrays, advantages = step(5), np.array([1.0, -1.0, 0.5])
    arrays[4][1] = 0.0
    loss, grad = loss_and_grad(*arrays, cfg, advantages_B=advantages)
    off = arrays[4] == 0
    spoilt = [x.copy() for x in arrays]
    spoilt[0][off], spoilt[1][off], spoilt[3][off] = np.nan, np.inf, -np.inf
    assert loss_and_grad(*spoilt, cfg, advantages_B=advantages)[0] == loss
    assert not grad[off].any()
    fewer = loss_and_grad(*(x[[0, 2]] for x in arrays), cfg, advantages_B=advantages[[0, 2]])
    share = 3 / 2 if aggregation == "reference" else 1.0  # there the mean is over all rollouts
    assert fewer[0] == pytest.approx(share * loss, rel=1e-12)
    np.testing.assert_allclose(fewer[1], share * grad[[0, 2]], atol=1e-15)


@pytest.mark.parametrize("kind", ["sdpo", "grpo", "hybrid"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_counted_gives_zero(kind: str, aggregation: str) -> None:
    arrays = step(6)
    arrays[4][:] = 0.0
    loss, grad = loss_and_grad(*arrays, config(kind=kind, aggregation=aggregation), advantages_B=np.ones(3))
    assert loss == 0.0
    assert not grad.any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), split=st.integers(1, 2), aggregation=st.sampled_from(AGGREGATIONS))
def test_micro_batches_add_up_when_scales_come_from_the_whole_step(seed: int, split: int, aggregation: str) -> None:
    cfg = config(kind="hybrid", aggregation=aggregation, top_k=4)
    arrays, rng = step(seed), np.random.default_rng(seed)
    weights = {"distil_weights_B": rng.random(3), "policy_weights_B": rng.random(3), "advantages_B": rng.normal(size=3)}
    loss, grad = loss_and_grad(*arrays, cfg, **weights)
    counts = arrays[4].sum(axis=1)
    scales = [objective.token_scale(counts, weights[f"{x}_weights_B"], aggregation) for x in ("distil", "policy")]
    total, pieces = 0.0, np.zeros_like(grad)
    for part in (range(split), range(split, 3)):
        for b in part:
            on = arrays[4][b] > 0
            size = np.ones(on.sum())
            rows = objective.Rows(
                arrays[2][b][on], arrays[3][b][on], scales[0][b] * size, scales[1][b] * size,
                weights["advantages_B"][b] * size, 0 * size,
            )  # fmt: skip
            value, pieces[b, on] = objective.row_loss_and_grad(arrays[0][b][on], arrays[1][b][on], rows, cfg, 1.0)
            total += value
    assert total == pytest.approx(loss, rel=1e-10, abs=1e-13)
    np.testing.assert_allclose(pieces, grad, atol=1e-13)


def test_aggregations_follow_their_definitions() -> None:
    arrays = step(7)
    arrays[4][:] = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    token = np.zeros((3, 4))
    for b, t in np.argwhere(arrays[4]):
        alone = np.zeros((3, 4))
        alone[b, t] = 1.0
        token[b, t] = loss_and_grad(*arrays[:4], alone, config())[0]
    expected = {
        "token_mean": token.sum() / 5,
        "sequence_mean_token_mean": (token[0].sum() / 4 + token[1].sum()) / 2,
        "sequence_mean_token_sum": token.sum() / 2,
        "reference": (token[0].sum() / 4 + token[1].sum()) / 3,  # the third, without a context, counts as 0
    }
    for aggregation, value in expected.items():
        assert loss_and_grad(*arrays, config(aggregation=aggregation))[0] == pytest.approx(value)


def test_weights_multiply_the_numerator_only_and_zero_does_not_count() -> None:
    np.testing.assert_allclose(objective.token_scale([2, 3, 5], [1.0, 0.5, 0.0], "token_mean"), [0.2, 0.1, 0.0])
    means = objective.token_scale([2, 4, 0, 5], [1.0, 0.5, 1.0, 0.0], "sequence_mean_token_mean")
    np.testing.assert_allclose(means, [0.25, 0.0625, 0.0, 0.0])
    sums = objective.token_scale([2, 4, 0, 5], [1.0, 0.5, 1.0, 0.0], "sequence_mean_token_sum")
    np.testing.assert_allclose(sums, [0.5, 0.25, 0.0, 0.0])


# --- GRPO and the hybrid -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual_clip", "value", "moves"),
    [
        (1.0, 2.0, None, -2.0, True),
        (1.5, 2.0, None, -2.56, False),
        (0.5, 2.0, None, -1.0, True),
        (0.5, -2.0, None, 1.6, False),
        (1.5, -2.0, None, 3.0, True),
        (5.0, -2.0, None, 10.0, True),
        (5.0, -2.0, 3.0, 6.0, False),
        (1.5, -2.0, 3.0, 3.0, True),
        (5.0, 2.0, 3.0, -2.56, False),
    ],
)
def test_grpo_clips_the_ratio_only_where_it_would_gain(
    ratio: float, advantage: float, dual_clip: float | None, value: float, moves: bool
) -> None:
    student = np.log(np.array([[[0.5, 0.3, 0.2]]]))
    rollout = np.log([[0.5 / ratio]])
    cfg = config(kind="grpo", importance_clip=0.1, dual_clip=dual_clip)
    loss, grad = loss_and_grad(student, None, [[0]], rollout, [[1]], cfg, advantages_B=[advantage])
    assert loss == pytest.approx(value)
    expected = -ratio * advantage * (np.array([1, 0, 0]) - [0.5, 0.3, 0.2]) if moves else np.zeros(3)
    np.testing.assert_allclose(grad[0, 0], expected, atol=1e-12)


def test_hybrid_is_the_weighted_sum_of_both_halves() -> None:
    arrays, advantages = step(8), np.array([1.0, -0.5, 0.2])
    halves = {kind: loss_and_grad(*arrays, config(kind=kind), advantages_B=advantages) for kind in ("sdpo", "grpo")}
    loss, grad = loss_and_grad(*arrays, config(kind="hybrid", hybrid_weight=0.3), advantages_B=advantages)
    assert loss == pytest.approx(0.7 * halves["sdpo"][0] + 0.3 * halves["grpo"][0])
    np.testing.assert_allclose(grad, 0.7 * halves["sdpo"][1] + 0.3 * halves["grpo"][1], atol=1e-14)


def test_each_half_is_normalised_by_its_own_tokens() -> None:
    arrays = step(9)
    cfg = config(kind="hybrid")
    given_weights = {"distil_weights_B": [1.0, 0.0, 0.0], "policy_weights_B": [0.0, 1.0, 1.0]}
    advantages = np.array([0.0, 1.0, -1.0])
    loss, grad = loss_and_grad(*arrays, cfg, advantages_B=advantages, **given_weights)
    distil = loss_and_grad(*(x[:1] for x in arrays), config(kind="sdpo"))
    policy = loss_and_grad(*(x[1:] for x in arrays), config(kind="grpo"), advantages_B=advantages[1:])
    assert loss == pytest.approx(distil[0] + policy[0])
    np.testing.assert_allclose(grad, np.concatenate([distil[1], policy[1]]), atol=1e-14)


def test_a_half_without_what_it_needs_is_refused() -> None:
    arrays = step()
    with pytest.raises(ValueError, match="advantages_B"):
        loss_and_grad(*arrays, config(kind="grpo"))
    with pytest.raises(ValueError, match="teacher_logits_BTV"):
        loss_and_grad(arrays[0], None, *arrays[2:], config())


# --- weights, advantages, teacher --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "success", "has_context", "expected"),
    [
        ({}, True, True, (1.0, 0.0)),
        ({}, True, False, (0.0, 0.0)),
        ({"kind": "grpo"}, False, True, (0.0, 1.0)),
        ({"kind": "hybrid", "hybrid_weight": 0.25}, False, True, (0.75, 0.25)),
        ({"kind": "hybrid", "hybrid_weight": 0.25}, False, False, (0.0, 0.25)),
        ({"route": "by_success"}, True, True, (0.0, 1.0)),
        ({"route": "by_success"}, False, True, (1.0, 0.0)),
        ({"route": "by_success"}, False, False, (0.0, 0.0)),
        ({"kind": "hybrid", "hybrid_weight": 0.25, "route": "by_success"}, True, True, (0.0, 0.25)),
        ({"kind": "hybrid", "hybrid_weight": 0.25, "route": "by_success"}, False, True, (0.75, 0.0)),
        ({"kind": "grpo", "route": "by_success"}, False, True, (0.0, 1.0)),
        ({"kind": "auto", "hybrid_weight": 0.25}, False, True, (0.75, 0.25)),
        ({"kind": "auto", "hybrid_weight": 0.25}, True, False, (0.0, 0.25)),
        ({"kind": "auto", "hybrid_weight": 0.25, "route": "by_success"}, False, True, (0.75, 0.25)),
        ({"kind": "auto", "hybrid_weight": 0.25, "route": "by_success"}, True, True, (0.0, 1.0)),
    ],
)
def test_sample_weights_say_which_half_learns(
    options: dict[str, Any], success: bool, has_context: bool, expected: tuple[float, float]
) -> None:
    assert objective.sample_weights(config(**options), success=success, has_context=has_context) == expected


def test_advantages_are_centred_in_their_group_and_scaled_on_request() -> None:
    np.testing.assert_allclose(objective.advantages([1, 0, 0, 1], config()), [0.5, -0.5, -0.5, 0.5])
    np.testing.assert_allclose(
        objective.advantages([1, 0, 0, 1], config(std_normalise=True)), [1, -1, -1, 1], rtol=1e-5
    )
    assert not objective.advantages([1.0, 1.0], config(std_normalise=True)).any()
    assert not objective.advantages([1.0], config(std_normalise=True)).any()
    assert objective.advantages([], config()).size == 0


@given(st.lists(st.floats(0, 1), max_size=12))
def test_question_weights_average_one_unless_nothing_is_uncertain(rates: list[float]) -> None:
    weights = objective.question_weights(rates)
    assert (weights >= 0).all()
    assert np.isfinite(weights).all()
    uncertain = any(rate > 0 and 1 - rate > 0 and rate * (1 - rate) > 0 for rate in rates)
    assert weights.sum() == pytest.approx(len(rates) if uncertain else 0.0)


def test_question_weights_are_largest_at_one_half() -> None:
    np.testing.assert_allclose(objective.question_weights([0.5, 0.1, 1.0]), np.array([0.5, 0.3, 0.0]) * 3 / 0.8)


@given(rate=st.floats(0, 1), updates=st.integers(0, 40), seed=st.integers(0, 1000))
def test_ema_closed_form_equals_updates_one_by_one(rate: float, updates: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    teacher = initial = rng.normal(size=4)
    students = list(rng.normal(size=(updates, 4)))
    for student in students:
        teacher = (1 - rate) * teacher + rate * student
    np.testing.assert_allclose(objective.ema_closed_form(initial, students, rate), teacher, atol=1e-12)
