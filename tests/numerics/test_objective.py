"""The oracle against the reference figures, finite differences and what the formulas promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import DATA

from sdpo_mlx import objective
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.objective import loss_and_grad

CASES = np.load(DATA / "loss_cases.npz")
AGGREGATIONS = ("token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "reference")
V = 9


def config(**options: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"kind": "sdpo", **options})


def step(seed: int = 0, shape: tuple[int, int, int] = (3, 4, V), drift: float = 0.3) -> list[np.ndarray]:
    """Student, teacher, ids, rollout log-probs and mask of one step."""
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(scale=1.5, size=(2, *shape))
    ids = rng.integers(shape[-1], size=shape[:2])
    rollout = np.take_along_axis(objective.log_softmax(student), ids[..., None], -1)[..., 0]
    mask = rng.random(shape[:2]) < 0.7
    mask[0] = True
    return [student, teacher, ids, rollout + rng.normal(scale=drift, size=ids.shape), mask.astype(float)]


def differences(
    arrays: list[np.ndarray], cfg: ObjectiveConfig, tau: float, size: float = 1e-6, **given: Any
) -> np.ndarray:
    """Central differences of the loss, for objectives without held coefficients."""
    grad = np.zeros(arrays[0].size)
    for i in range(grad.size):
        shift = np.zeros(grad.size)
        shift[i] = size
        up, down = (
            loss_and_grad(arrays[0] + sign * shift.reshape(arrays[0].shape), *arrays[1:], cfg, tau, **given)[0]
            for sign in (1, -1)
        )
        grad[i] = (up - down) / (2 * size)
    return grad.reshape(arrays[0].shape)


@pytest.mark.parametrize("case", range(38))
def test_reference_cases_are_met_within_1e_9(case: int) -> None:
    alpha, k, tail, clip, tau = (float(x) for x in CASES[f"{case}/cfg"])
    cfg = config(
        alpha=alpha,
        support={-1: "full", -2: "sampled"}.get(int(k), "top_k"),
        top_k=int(k) if k > 0 else None,
        tail=bool(tail),
        importance_clip=clip if clip > 0 else None,
    )
    arrays = [CASES[f"{case}/{name}"] for name in ("student", "teacher", "ids", "rollout_logp", "mask")]
    loss, grad = loss_and_grad(*arrays, cfg, tau)
    assert abs(loss - CASES[f"{case}/loss"]) < 1e-9
    assert np.abs(grad - CASES[f"{case}/grad"]).max() < 1e-9


OBJECTIVES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["sdpo", "grpo", "hybrid"]),
        "alpha": st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.02, 0.98)),
        "support": st.sampled_from(["full", "top_k"]),
        "top_k": st.one_of(st.none(), st.integers(1, V + 3)),
        "tail": st.booleans(),
        "aggregation": st.sampled_from(AGGREGATIONS),
        "dual_clip": st.sampled_from([None, 1.3]),
    }
)


@settings(max_examples=100, deadline=None, derandomize=True)  # a clip's corner within the step would be a false alarm
@given(options=OBJECTIVES, tau=st.floats(0.5, 2.0), seed=st.integers(0, 10_000))
def test_gradient_equals_finite_differences(options: dict[str, Any], tau: float, seed: int) -> None:
    cfg = config(importance_clip=None, **options)
    arrays, advantages = step(seed), np.random.default_rng(seed).normal(size=3)
    _, grad = loss_and_grad(*arrays, cfg, tau, advantages_B=advantages)
    expected = differences(arrays, cfg, tau, advantages_B=advantages)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    support=st.sampled_from(["sampled", "sequence"]),
    aggregation=st.sampled_from(AGGREGATIONS),
    tau=st.floats(0.5, 2.0),
    clip=st.sampled_from([None, 0.8, 2.0]),
    seed=st.integers(0, 10_000),
)
def test_gradient_holds_coefficients_constant_when_sampled(
    support: str, aggregation: str, tau: float, clip: float | None, seed: int
) -> None:
    cfg = config(alpha=1.0, support=support, aggregation=aggregation, importance_clip=clip)
    student, teacher, ids, rollout, mask = step(seed)
    _, grad = loss_and_grad(student, teacher, ids, rollout, mask, cfg, tau)

    logp, logq = (
        np.take_along_axis(objective.log_softmax(x, tau), ids[..., None], -1)[..., 0] for x in (student, teacher)
    )
    gap, counts = logp - logq, mask.sum(axis=1)
    if support == "sequence":
        gap = np.tile(((gap * mask).sum(axis=1) / np.maximum(counts, 1))[:, None], (1, mask.shape[1]))
    weight = np.ones_like(gap) if clip is None else np.minimum(np.exp(logp - rollout), clip)
    scale = objective.token_scale(counts, np.ones(3), aggregation)[:, None]
    one_hot = np.eye(V)[ids]
    expected = (gap * weight * scale * mask)[..., None] * (one_hot - np.exp(objective.log_softmax(student, tau))) / tau
    np.testing.assert_allclose(grad, expected, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_importance_weight_is_held_constant_and_clipped_above(alpha: float) -> None:
    student, teacher, ids, rollout, _ = step(drift=1.0)
    weights = np.exp(np.take_along_axis(objective.log_softmax(student), ids[..., None], -1)[..., 0] - rollout)
    assert (weights > 1.5).any()
    for b, t in np.ndindex(ids.shape):
        mask = np.zeros(ids.shape)
        mask[b, t] = 1.0
        plain = loss_and_grad(student, teacher, ids, rollout, mask, config(alpha=alpha, importance_clip=None))
        clipped = loss_and_grad(student, teacher, ids, rollout, mask, config(alpha=alpha, importance_clip=1.5))
        factor = min(weights[b, t], 1.5)
        assert clipped[0] == pytest.approx(factor * plain[0], rel=1e-12)
        np.testing.assert_allclose(clipped[1], factor * plain[1], rtol=1e-9, atol=1e-15)


def test_importance_ratio_is_bounded_where_log_probs_are_far_apart() -> None:
    ratio = objective.importance_ratio(np.array([0.0, -1e4]), np.array([-1e4, 0.0]))
    np.testing.assert_allclose(ratio, [np.exp(20.0), np.exp(-20.0)])


# --- supports ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": V - 1, "tail": True},
        {"top_k": V},
        {"top_k": V, "tail": False},
        {"top_k": V + 50},
        {"top_k": V + 50, "tail": False},
        {"top_k": None},
    ],
)
def test_top_k_that_leaves_nothing_out_equals_the_full_vocabulary(alpha: float, options: dict[str, Any]) -> None:
    arrays = step(1)
    loss, grad = loss_and_grad(*arrays, config(alpha=alpha, **options), 0.8)
    full, full_grad = loss_and_grad(*arrays, config(alpha=alpha, support="full"), 0.8)
    assert loss == pytest.approx(full, rel=1e-9)
    np.testing.assert_allclose(grad, full_grad, atol=1e-10)


def test_top_k_reads_the_teacher_at_the_students_ids() -> None:
    student = np.log(np.array([[[0.6, 0.3, 0.06, 0.04]]]))
    teacher = np.log(np.array([[[0.1, 0.2, 0.3, 0.4]]]))
    cfg = config(alpha=1.0, top_k=2, importance_clip=None)
    loss, _ = loss_and_grad(student, teacher, [[0]], [[0.0]], [[1]], cfg)
    assert loss == pytest.approx(0.6 * np.log(6) + 0.3 * np.log(1.5) + 0.1 * np.log(0.1 / 0.7))
    loss, _ = loss_and_grad(student, teacher, [[0]], [[0.0]], [[1]], cfg.model_copy(update={"tail": False}))
    p, q = np.array([2 / 3, 1 / 3]), np.array([1 / 3, 2 / 3])
    assert loss == pytest.approx((p * np.log(p / q)).sum())


def test_divergences_follow_their_definitions() -> None:
    p, q = np.array([[0.7, 0.2, 0.1]]), np.array([[0.2, 0.3, 0.5]])

    def kl(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * np.log(a / b)).sum())

    m = 0.8 * p + 0.2 * q
    expected = {0.0: kl(q, p), 1.0: kl(p, q), 0.2: 0.8 * kl(p, m) + 0.2 * kl(q, m)}
    for alpha, value in expected.items():
        assert objective.divergence(np.log(p), np.log(q), alpha)[0][0] == pytest.approx(value)


def test_sequence_equals_sampled_when_answers_have_one_token() -> None:
    arrays = step(2, shape=(5, 1, V))
    sampled = loss_and_grad(*arrays, config(alpha=1.0, support="sampled"), 0.9)
    sequence = loss_and_grad(*arrays, config(alpha=1.0, support="sequence"), 0.9)
    assert sequence[0] == sampled[0]
    np.testing.assert_array_equal(sequence[1], sampled[1])


def test_sampled_gradient_is_unbiased_for_the_reverse_kl() -> None:
    student, teacher = np.random.default_rng(3).normal(size=(2, 1, 1, V))
    p = np.exp(objective.log_softmax(student))[0, 0]
    cfg = config(alpha=1.0, support="sampled", importance_clip=None)
    each = [loss_and_grad(student, teacher, [[y]], [[0.0]], [[1]], cfg)[1] for y in range(V)]
    _, full = loss_and_grad(
        student, teacher, [[0]], [[0.0]], [[1]], config(alpha=1.0, support="full", importance_clip=None)
    )
    np.testing.assert_allclose(np.tensordot(p, np.array(each), axes=1), full, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(alpha=st.floats(0, 1), k=st.integers(1, V + 1), tail=st.booleans(), seed=st.integers(0, 10_000))
def test_divergence_is_never_negative_and_zero_when_equal(alpha: float, k: int, tail: bool, seed: int) -> None:
    arrays = step(seed)
    cfg = config(alpha=alpha, top_k=k, tail=tail)
    assert loss_and_grad(*arrays, cfg)[0] >= -1e-12
    arrays[1] = arrays[0] + 3.0
    loss, grad = loss_and_grad(*arrays, cfg)
    assert abs(loss) < 1e-12
    assert np.abs(grad).max() < 1e-12


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [3, None])
def test_huge_logits_stay_finite(alpha: float, k: int | None) -> None:
    arrays = step(4)
    arrays[0], arrays[1] = 1e4 * np.sign(arrays[0]), -1e4 * np.sign(arrays[0])
    loss, grad = loss_and_grad(*arrays, config(alpha=alpha, top_k=k))
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()
