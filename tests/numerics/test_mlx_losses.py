"""The MLX losses against the float64 oracle, used row by row and chunk by chunk as the backend uses them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from paths import DATA

from sdpo_mlx import objective as oracle
from sdpo_mlx.config import ObjectiveConfig

mx = pytest.importorskip("mlx.core")
losses = pytest.importorskip("sdpo_mlx.backends.mlx.losses")

CASES = np.load(DATA / "loss_cases.npz")
AGGREGATIONS = ("token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "reference")
SUPPORTS: list[dict[str, Any]] = [
    *(
        {"alpha": alpha, **support}
        for alpha in (0.0, 0.3, 0.5, 1.0)
        for support in (
            {"support": "full"},
            {"support": "top_k", "top_k": None},
            {"support": "top_k", "top_k": 5, "tail": True},
            {"support": "top_k", "top_k": 5, "tail": False},
            {"support": "top_k", "top_k": 16, "tail": True},
            {"support": "top_k", "top_k": 400, "tail": True},
        )
    ),
    {"alpha": 1.0, "support": "sampled"},
    {"alpha": 1.0, "support": "sequence"},
]


def step(seed: int = 0, shape: tuple[int, int, int] = (4, 5, 17), scale: float = 2.0) -> dict[str, np.ndarray]:
    """Random arrays of one step; sample 2 has no counted token."""
    rng = np.random.default_rng(seed)
    batch, time, vocab = shape
    student, teacher = (rng.normal(scale=scale, size=shape).astype(np.float32) for _ in range(2))
    ids = rng.integers(vocab, size=(batch, time)).astype(np.int32)
    sampled = np.take_along_axis(oracle.log_softmax(student), ids[..., None], axis=-1)[..., 0]
    mask = rng.random((batch, time)) < 0.8
    mask[:, 0], mask[2] = True, False
    return {
        "student": student,
        "teacher": teacher,
        "ids": ids,
        "rollout": (sampled + rng.normal(scale=0.5, size=sampled.shape)).astype(np.float32),
        "mask": mask.astype(np.float64),
        "advantages": rng.normal(size=batch),
        "distil": np.array([1.0, 0.5, 1.0, 0.0]),
        "policy": np.array([0.3, 0.0, 1.0, 2.0]),
    }


def oracle_step(arrays: dict[str, np.ndarray], cfg: ObjectiveConfig, tau: float) -> tuple[float, np.ndarray]:
    named = (arrays[name] for name in ("student", "teacher", "ids", "rollout", "mask"))
    return oracle.loss_and_grad(
        *named,
        cfg,
        tau,
        advantages_B=arrays["advantages"],
        distil_weights_B=arrays["distil"],
        policy_weights_B=arrays["policy"],
    )


def mlx_step(arrays: dict[str, np.ndarray], cfg: ObjectiveConfig, tau: float, chunk: int) -> tuple[float, np.ndarray]:
    """The same step the way a backend takes it: flat rows, weights by `token_scale`, chunk after chunk."""
    where = np.nonzero(arrays["mask"])
    counts = arrays["mask"].sum(axis=1)
    student, teacher = arrays["student"][where], arrays["teacher"][where]
    ids = arrays["ids"][where]
    scales = [oracle.token_scale(counts, arrays[half], cfg.aggregation)[where[0]] for half in ("distil", "policy")]
    gap = [np.array(losses.at(losses.log_softmax(mx.array(x), tau), mx.array(ids))) for x in (student, teacher)]
    sequence = oracle.sequence_coefficients(gap[0] - gap[1], where[0], len(counts))[where[0]]
    flat = [ids, arrays["rollout"][where], *scales, arrays["advantages"][where[0]], sequence]
    total, grad = 0.0, np.zeros(arrays["student"].shape, dtype=np.float32)
    pieces = []
    for start in range(0, len(ids), chunk):
        span = slice(start, start + chunk)
        rows = losses.Rows(*(mx.array(x[span].astype(np.int32 if x is ids else np.float32)) for x in flat))

        def scalar(logits: Any, span: slice = span, rows: Any = rows) -> Any:
            return losses.row_loss(logits, mx.array(teacher[span]), rows, cfg, tau)[0]

        value, piece = mx.value_and_grad(scalar)(mx.array(student[span]))
        total += value.item()
        pieces.append(np.array(piece))
    grad[where] = np.concatenate(pieces)
    return total, grad


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def one_row(ids: list[int], **given: list[float]) -> Any:
    zeros = {
        name: [0.0] * len(ids) for name in ("rollout_logps_R", "distil_R", "policy_R", "advantage_R", "sequence_R")
    }
    return losses.Rows(ids_R=mx.array(ids, dtype=mx.int32), **{k: mx.array(v) for k, v in (zeros | given).items()})


@pytest.mark.parametrize("tau", [1.0, 0.7])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("options", SUPPORTS, ids=lambda o: "-".join(str(v) for v in o.values()))
@pytest.mark.parametrize("kind", ["sdpo", "grpo", "hybrid"])
def test_loss_and_gradient_agree_with_the_oracle(
    kind: str, options: dict[str, Any], aggregation: str, tau: float
) -> None:
    cfg = ObjectiveConfig.model_validate({"kind": kind, "aggregation": aggregation, **options})
    arrays = step(seed=len(options) + int(10 * options["alpha"]))
    distil, policy = oracle.kind_weights(cfg)
    arrays["distil"], arrays["policy"] = arrays["distil"] * distil, arrays["policy"] * policy
    loss, grad = oracle_step(arrays, cfg, tau)
    found, found_grad = mlx_step(arrays, cfg, tau, chunk=4)
    assert found == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert cosine(found_grad, grad) >= 0.9999
    np.testing.assert_allclose(found_grad, grad, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("clip", [None, 0.5, 2.0])
def test_loss_and_gradient_agree_with_the_oracle_for_every_importance_clip(clip: float | None) -> None:
    cfg = ObjectiveConfig(importance_clip=clip, top_k=5)
    arrays = step(seed=3)
    loss, grad = oracle_step(arrays, cfg, 1.0)
    found, found_grad = mlx_step(arrays, cfg, 1.0, chunk=100)
    assert found == pytest.approx(loss, rel=1e-5)
    assert cosine(found_grad, grad) >= 0.9999


def test_loss_and_gradient_agree_with_the_oracle_with_the_dual_clip() -> None:
    arrays = step(seed=3)
    results = [oracle_step(arrays, ObjectiveConfig(kind="grpo", dual_clip=clip), 1.0) for clip in (None, 1.1)]
    found, found_grad = mlx_step(arrays, ObjectiveConfig(kind="grpo", dual_clip=1.1), 1.0, chunk=4)
    assert found == pytest.approx(results[1][0], rel=1e-5)
    assert abs(found - results[0][0]) > 1e-3  # it binds here
    np.testing.assert_allclose(found_grad, results[1][1], rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("case", range(38))
def test_reference_cases_are_met_in_float32(case: int) -> None:
    alpha, k, tail, clip, tau = (float(x) for x in CASES[f"{case}/cfg"])
    cfg = ObjectiveConfig(
        alpha=alpha,
        support={-1: "full", -2: "sampled"}.get(int(k), "top_k"),
        top_k=int(k) if k > 0 else None,
        tail=bool(tail),
        importance_clip=clip if clip > 0 else None,
    )
    names = {"student": "student", "teacher": "teacher", "ids": "ids", "rollout": "rollout_logp", "mask": "mask"}
    arrays = {ours: CASES[f"{case}/{theirs}"] for ours, theirs in names.items()}
    samples = len(arrays["ids"])
    arrays |= {"advantages": np.zeros(samples), "distil": np.ones(samples), "policy": np.zeros(samples)}
    loss, grad = mlx_step(arrays, cfg, tau, chunk=5)
    assert loss == pytest.approx(float(CASES[f"{case}/loss"]), rel=1e-5)
    assert cosine(grad, CASES[f"{case}/grad"]) >= 0.9999


@pytest.mark.parametrize("options", SUPPORTS, ids=lambda o: "-".join(str(v) for v in o.values()))
@pytest.mark.parametrize("extreme", ["huge", "identical", "one_hot", "opposed"])
def test_loss_and_gradient_stay_finite_and_right_with_extreme_logits(extreme: str, options: dict[str, Any]) -> None:
    cfg = ObjectiveConfig.model_validate({"kind": "hybrid", **options})
    arrays = step(seed=5)
    if extreme == "huge":
        rng = np.random.default_rng(0)
        for name in ("student", "teacher"):
            arrays[name] = rng.choice([-1e4, 1e4], size=arrays[name].shape).astype(np.float32) + arrays[name]
    elif extreme == "identical":
        arrays["teacher"] = arrays["student"]
    else:
        # Both are nearly sure, of the same token or of two different ones.
        sure = 14 * np.eye(17, dtype=np.float32)
        arrays["student"] = arrays["student"] + sure[3]
        arrays["teacher"] = arrays["teacher"] + sure[9 if extreme == "opposed" else 3]
    loss, grad = oracle_step(arrays, cfg, 0.9)
    found, found_grad = mlx_step(arrays, cfg, 0.9, chunk=6)
    assert np.isfinite(found_grad).all()
    assert found == pytest.approx(loss, rel=1e-5, abs=2e-6)
    assert cosine(found_grad, grad) >= 0.9999


@pytest.mark.parametrize("options", [{"alpha": 0.5}, {"alpha": 1.0, "top_k": 20}, {"alpha": 1.0, "support": "full"}])
def test_large_vocabulary_keeps_its_digits(options: dict[str, Any]) -> None:
    cfg = ObjectiveConfig.model_validate(options)
    arrays = step(seed=1, shape=(4, 2, 40_001), scale=3.0)
    arrays["policy"] = np.zeros(4)
    loss, grad = oracle_step(arrays, cfg, 1.0)
    found, found_grad = mlx_step(arrays, cfg, 1.0, chunk=8)
    assert found == pytest.approx(loss, rel=1e-5)
    assert cosine(found_grad, grad) >= 0.9999


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_arithmetic_is_float32_when_logits_come_in_half_precision(dtype: Any) -> None:
    arrays = step(seed=1)
    student, teacher = (mx.array(arrays[name].reshape(-1, 17)).astype(dtype) for name in ("student", "teacher"))
    rows = one_row(arrays["ids"].ravel().tolist(), distil_R=[0.05] * 20)
    cfg = ObjectiveConfig(top_k=5)
    low, _ = losses.row_loss(student, teacher, rows, cfg, 1.0)
    high, _ = losses.row_loss(student.astype(mx.float32), teacher.astype(mx.float32), rows, cfg, 1.0)
    assert low.dtype == mx.float32
    assert low.item() == high.item()


def test_chunking_does_not_change_the_sum() -> None:
    arrays, cfg = step(seed=2), ObjectiveConfig(kind="hybrid", top_k=5)
    whole, whole_grad = mlx_step(arrays, cfg, 1.0, chunk=1000)
    single, single_grad = mlx_step(arrays, cfg, 1.0, chunk=1)
    assert single == pytest.approx(whole, rel=1e-6)
    np.testing.assert_allclose(single_grad, whole_grad, rtol=1e-5, atol=1e-8)


def test_teacher_receives_no_gradient() -> None:
    arrays, rows = step(), one_row([1, 2, 3, 4, 5], distil_R=[1.0] * 5)
    student = mx.array(arrays["student"][0])
    for options in SUPPORTS:
        cfg = ObjectiveConfig.model_validate(options)
        grad = mx.grad(lambda t, cfg=cfg: losses.row_loss(student, t, rows, cfg, 1.0)[0])(
            mx.array(arrays["teacher"][0])
        )
        assert not np.array(grad).any()


def test_statistics_carry_no_gradient_and_equal_the_oracle() -> None:
    arrays, cfg = step(), ObjectiveConfig(support="full")
    student, teacher, ids, rollout = (arrays[name][0] for name in ("student", "teacher", "ids", "rollout"))
    rows = one_row(ids.tolist(), rollout_logps_R=rollout.tolist(), distil_R=[0.1] * 5)
    _, found = losses.row_loss(mx.array(student), mx.array(teacher), rows, cfg, 0.7)
    logp, logq = (oracle.log_softmax(x, 0.7) for x in (student, teacher))
    expected = {
        "divergence_R": oracle.divergence(logp, logq, 0.5)[0],
        "entropy_R": -(np.exp(logp) * logp).sum(axis=-1),
        "log_p_R": oracle.at(logp, ids),
        "log_q_R": oracle.at(logq, ids),
        "ratio_R": oracle.importance_ratio(oracle.at(logp, ids), rollout),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(np.array(getattr(found, name)), values, rtol=2e-5, err_msg=name)
    grads = mx.grad(lambda s: sum(x.sum() for x in losses.row_loss(s, mx.array(teacher), rows, cfg, 0.7)[1]))(
        mx.array(student)
    )
    assert not np.array(grads).any()


def test_policy_alone_needs_no_teacher() -> None:
    arrays, cfg = step(), ObjectiveConfig(kind="grpo")
    arrays["distil"] = np.zeros(4)
    loss, _ = oracle_step(arrays, cfg, 1.0)
    where = np.nonzero(arrays["mask"])
    scale = oracle.token_scale(arrays["mask"].sum(axis=1), arrays["policy"], cfg.aggregation)[where[0]]
    rows = one_row(
        arrays["ids"][where].tolist(),
        rollout_logps_R=arrays["rollout"][where].tolist(),
        policy_R=scale.tolist(),
        advantage_R=arrays["advantages"][where[0]].tolist(),
    )
    found, figures = losses.row_loss(mx.array(arrays["student"][where]), None, rows, cfg, 1.0)
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert not np.array(figures.divergence_R).any()
    assert not np.array(figures.log_q_R).any()


def test_rows_of_weight_zero_change_nothing() -> None:
    arrays, cfg = step(), ObjectiveConfig(top_k=5)
    student, teacher = (mx.array(arrays[name][0]) for name in ("student", "teacher"))
    rows = one_row([1, 2, 3, 4, 5], distil_R=[0.2, 0.0, 0.2, 0.0, 0.2])
    kept = [0, 2, 4]
    few = one_row([1, 3, 5], distil_R=[0.2] * 3)
    whole, _ = losses.row_loss(student, teacher, rows, cfg, 1.0)
    part, _ = losses.row_loss(student[mx.array(kept)], teacher[mx.array(kept)], few, cfg, 1.0)
    assert whole.item() == pytest.approx(part.item(), rel=1e-6)
    grad = np.array(mx.grad(lambda s: losses.row_loss(s, teacher, rows, cfg, 1.0)[0])(student))
    assert not grad[[1, 3]].any()
    assert grad[kept].any(axis=1).all()
