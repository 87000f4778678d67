"""The mathematics of SDPO in float64 numpy: the reference for the formulas and for tests of every backend.

Notation, one row (one response token) at a time: p = softmax(student / temperature) over the
vocabulary, q = softmax(teacher / temperature), y the sampled token, p_0(y) its probability when it was
sampled. Gradients are with respect to the *raw* student logits; the teacher, the choice of the
top-k ids, the importance weight and every coefficient are constants.

    distillation  w * D(p, q),  w = min(exp(clamp(log p(y) - log p_0(y), -20, 20)), importance_clip)
      alpha 0       D = KL(q || p)
      alpha 1       D = KL(p || q)
      between       D = (1-alpha) KL(p || m) + alpha KL(q || m),  m = (1-alpha) p + alpha q
      top_k         p and q at the student's k likeliest ids, plus one tail bucket or renormalised
      sampled       D = c log p(y),  c = log p(y) - log q(y)                       (gradient of KL(p || q))
      sequence      the same with one c a sequence: the mean over its counted tokens
    policy (GRPO) -min(r A, clip(r, 1-clip_low, 1+clip_high) A),  r = p(y) / p_0(y),  A = `advantages`

The family is not continuous at its ends: towards alpha 0 and 1 the middle form goes to zero loss.

The loss of a step is the sum over counted rows of
    distil_weight * D w / N_distil  +  policy_weight * GRPO / N_policy                     (token mean)
where N_x counts the tokens of *all* samples of the step whose weight x is above 0 (`token_scale` has the
other aggregations). The two weights of a sample carry everything that selects or mixes: the kind, the
hybrid's lambda, the route, whether there is a context (`sample_weights`) and the question's weight
(`question_weights`, a factor on both). So no lambda stands in the loss itself.

The EMA teacher after n updates, with students s_1..s_n and rate r, started from t_0 (`ema_closed_form`):
    t_n = (1-r)^n t_0 + r * sum_i (1-r)^(n-i) s_i

Sources: arXiv 2601.20802 (SDPO), 2605.27765 (question weights), 2604.02288 (route).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdpo_mlx.config import ObjectiveConfig

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.integer]

TAIL_CEILING = -1e-7  # largest log-mass of the top-k that the tail bucket believes
LOG_RATIO_LIMIT = 20.0
STD_FLOOR = 1e-6


@dataclass(frozen=True)
class Rows:
    """The tokens of the loss, flat: sampled ids, log-probs at sampling, and the factor of each term.

    `distil_R` and `policy_R` are already divided by their normaliser; 0 means that the half is absent.
    `sequence_R` is the coefficient of support `sequence` (unused otherwise).
    """

    ids_R: Indices
    rollout_logps_R: Array
    distil_R: Array
    policy_R: Array
    advantage_R: Array
    sequence_R: Array


# --- distributions ---------------------------------------------------------------------------------------


def log_softmax(logits_RV: npt.ArrayLike, temperature: float = 1.0) -> Array:
    """Return log-probabilities along the last axis, stable for any finite logits."""
    scaled = np.asarray(logits_RV, dtype=np.float64) / temperature
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def support_ids(logp_RV: Array, cfg: ObjectiveConfig) -> Indices | None:
    """Return the student's k most likely ids (R,K), or None if the full vocabulary is compared."""
    k = cfg.top_k if cfg.support == "top_k" else None
    if k is None or k >= logp_RV.shape[-1]:
        return None
    return np.argpartition(-logp_RV, k - 1, axis=-1)[:, :k]


def on_support(logp_RV: Array, ids_RK: Indices | None, tail: bool) -> Array:
    """Return log-probabilities on the support (R,S): S is V, K + 1 with the tail bucket, or K renormalized."""
    if ids_RK is None:
        return logp_RV
    logp_RK = np.take_along_axis(logp_RV, ids_RK, axis=-1)
    mass_R1 = _log_mass(logp_RK)
    if not tail:
        return np.asarray(logp_RK - mass_R1)
    return np.concatenate([logp_RK, np.log(-np.expm1(np.minimum(mass_R1, TAIL_CEILING)))], axis=-1)


def on_support_backward(grad_RS: Array, logp_RV: Array, ids_RK: Indices | None, tail: bool) -> Array:
    """Backpropagate a gradient on the support to the log-probabilities of the vocabulary (R,V)."""
    if ids_RK is None:
        return grad_RS
    logp_RK = np.take_along_axis(logp_RV, ids_RK, axis=-1)
    mass_R1 = _log_mass(logp_RK)
    share_RK = np.exp(logp_RK - mass_R1)  # d mass / d logp
    if tail:
        capped_R1 = np.minimum(mass_R1, TAIL_CEILING)
        slope_R1 = np.where(mass_R1 <= TAIL_CEILING, np.exp(capped_R1) / np.expm1(capped_R1), 0.0)
        grad_RK = grad_RS[:, :-1] + grad_RS[:, -1:] * slope_R1 * share_RK
    else:
        grad_RK = grad_RS - share_RK * grad_RS.sum(axis=-1, keepdims=True)
    grad_RV = np.zeros_like(logp_RV)
    np.put_along_axis(grad_RV, ids_RK, grad_RK, axis=-1)
    return grad_RV


def _log_mass(logp_RK: Array) -> Array:
    top_R1 = logp_RK.max(axis=-1, keepdims=True)
    return np.asarray(top_R1 + np.log(np.exp(logp_RK - top_R1).sum(axis=-1, keepdims=True)))


# --- one row's terms: each gives its value (R,) and its gradient with respect to log p ---------------------


def divergence(logp_RS: Array, logq_RS: Array, alpha: float) -> tuple[Array, Array]:
    """Return D(p, q) of each row and its gradient with respect to log p (R,S)."""
    p, q = np.exp(logp_RS), np.exp(logq_RS)
    if alpha == 0.0:
        return (q * (logq_RS - logp_RS)).sum(axis=-1), -q
    if alpha == 1.0:
        return (p * (logp_RS - logq_RS)).sum(axis=-1), p * (logp_RS - logq_RS + 1.0)
    logm = np.logaddexp(logp_RS + np.log1p(-alpha), logq_RS + np.log(alpha))
    student, teacher = p * (logp_RS - logm), q * (logq_RS - logm)
    # The paths through m add up to -(1-alpha) p and cancel the derivative of p log p.
    return ((1 - alpha) * student + alpha * teacher).sum(axis=-1), (1 - alpha) * student


def distil_rows(logp_RV: Array, logq_RV: Array, rows: Rows, cfg: ObjectiveConfig) -> tuple[Array, Array]:
    """Return the distillation term of each row before importance and weight, and its gradient (R,V)."""
    if cfg.support in ("sampled", "sequence"):
        logp_R = at(logp_RV, rows.ids_R)
        gap_R = logp_R - at(logq_RV, rows.ids_R)
        coefficient_R = rows.sequence_R if cfg.support == "sequence" else gap_R
        return coefficient_R * logp_R, _put(coefficient_R, rows.ids_R, logp_RV)
    ids_RK = support_ids(logp_RV, cfg)
    logp_RS, logq_RS = (on_support(x, ids_RK, cfg.tail) for x in (logp_RV, logq_RV))
    value_R, grad_RS = divergence(logp_RS, logq_RS, cfg.alpha)
    return value_R, on_support_backward(grad_RS, logp_RV, ids_RK, cfg.tail)


def policy_rows(logp_RV: Array, rows: Rows, cfg: ObjectiveConfig) -> tuple[Array, Array]:
    """Return the GRPO term of each row before its weight, and its gradient (R,V)."""
    logp_R = at(logp_RV, rows.ids_R)
    ratio_R = importance_ratio(logp_R, rows.rollout_logps_R)
    free_R = ratio_R * rows.advantage_R
    held_R = np.clip(ratio_R, 1.0 - cfg.clip_low, 1.0 + cfg.clip_high) * rows.advantage_R
    live_R = (free_R <= held_R) & (np.abs(logp_R - rows.rollout_logps_R) <= LOG_RATIO_LIMIT)
    if cfg.dual_clip is not None:
        bound_R = np.where(rows.advantage_R < 0, cfg.dual_clip * rows.advantage_R, -np.inf)
        held_R, live_R = np.maximum(held_R, bound_R), live_R & (free_R >= bound_R)
        free_R = np.maximum(free_R, bound_R)
    return -np.minimum(free_R, held_R), _put(np.where(live_R, -free_R, 0.0), rows.ids_R, logp_RV)


def importance_ratio(logp_R: Array, rollout_logps_R: Array) -> Array:
    """Return p(y) / p_0(y) with its logarithm clipped to +-20."""
    return np.asarray(np.exp(np.clip(logp_R - rollout_logps_R, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)))


def importance_weight(logp_R: Array, rollout_logps_R: Array, cfg: ObjectiveConfig) -> Array:
    """Return the importance weight of each row's distillation term: the ratio, clipped above; 1 if off."""
    if cfg.importance_clip is None:
        return np.ones_like(logp_R)
    return np.minimum(importance_ratio(logp_R, rollout_logps_R), cfg.importance_clip)


def sequence_coefficients(gap_R: Array, sample_R: Indices, samples: int) -> Array:
    """Return the mean of log p(y) - log q(y) over each sample's rows (B,); 0 for a sample without rows."""
    counts_B = np.bincount(sample_R, minlength=samples)
    return np.asarray(np.bincount(sample_R, weights=gap_R, minlength=samples) / np.maximum(counts_B, 1))


def at(values_RV: Array, ids_R: Indices) -> Array:
    """Return the entry of each row at its id."""
    return np.asarray(np.take_along_axis(values_RV, ids_R[:, None], axis=-1)[:, 0])


def _put(values_R: Array, ids_R: Indices, like_RV: Array) -> Array:
    out_RV = np.zeros_like(like_RV)
    np.put_along_axis(out_RV, ids_R[:, None], values_R[:, None], axis=-1)
    return out_RV


# --- weights: everything that selects, mixes or normalises is a number a sample -----------------------------


def sample_weights(cfg: ObjectiveConfig, *, success: bool, has_context: bool) -> tuple[float, float]:
    """Return (distil_weight, policy_weight) of one rollout, without the problem's weight.

    Without a context there is nothing to distil. Under `by_success` a success learns by GRPO alone and
    a failure by distillation alone; kind `grpo` has no self-teacher, so the route does not touch it.
    """
    distil, policy = kind_weights(cfg)
    if cfg.route == "by_success" and cfg.kind != "grpo":
        if success:
            distil, policy = 0.0, policy if cfg.kind == "hybrid" else 1.0
        elif cfg.kind != "auto":  # there a failure keeps the share of GRPO that its distillation does not have
            policy = 0.0
    return (distil if has_context else 0.0), policy


def kind_weights(cfg: ObjectiveConfig) -> tuple[float, float]:
    """Return (distil_weight, policy_weight) of the kind alone; `auto` is the hybrid with a measured `hybrid_weight`."""
    if cfg.kind in ("hybrid", "auto"):
        return 1.0 - cfg.hybrid_weight, cfg.hybrid_weight
    return (1.0, 0.0) if cfg.kind == "sdpo" else (0.0, 1.0)


def advantages(rewards_B: npt.ArrayLike, cfg: ObjectiveConfig) -> Array:
    """Return reward minus the mean of one group (B,), divided by the population deviation if configured."""
    rewards = np.asarray(rewards_B, dtype=np.float64)
    if rewards.size == 0:
        return rewards
    centred = rewards - rewards.mean()
    return np.asarray(centred / (rewards.std() + STD_FLOOR)) if cfg.std_normalise else centred


def question_weights(pass_rates_N: npt.ArrayLike) -> Array:
    """Return sqrt(p(1-p)) of each problem, scaled to mean 1 over the N problems; all zeros stay zero."""
    rates = np.asarray(pass_rates_N, dtype=np.float64)
    raw = np.sqrt(np.clip(rates * (1.0 - rates), 0.0, None))
    return np.asarray(raw * (raw.size / raw.sum())) if raw.any() else raw


def token_scale(counts_B: npt.ArrayLike, weights_B: npt.ArrayLike, aggregation: str) -> Array:
    """Return the factor of every row of each sample (B,), so that the sum over rows is the step's loss.

    `counts_B` are the counted tokens of all samples of the step. Weights multiply the numerator only;
    a sample of weight 0 or without tokens is not counted, except in `reference`. Nothing counted gives zeros.
    """
    counts, weights = np.asarray(counts_B, dtype=np.float64), np.asarray(weights_B, dtype=np.float64)
    counted = (counts > 0) & (weights > 0)
    if aggregation == "token_mean":
        normaliser = np.full_like(counts, counts[counted].sum())
    elif aggregation == "reference":
        normaliser = counts.size * counts
    elif aggregation == "sequence_mean_token_mean":
        normaliser = counted.sum() * counts
    else:
        normaliser = np.full_like(counts, counted.sum())
    return np.where(counted, weights / np.where(counted, normaliser, 1.0), 0.0)


# --- the step ----------------------------------------------------------------------------------------------


def row_loss_and_grad(
    student_RV: npt.ArrayLike, teacher_RV: npt.ArrayLike | None, rows: Rows, cfg: ObjectiveConfig, temperature: float
) -> tuple[float, Array]:
    """Return the sum of both terms over rows, and its gradient with respect to the raw student logits (R,V).

    Teacher logits are read only where `distil_R` is above 0 and may be None when no row is distilled.
    """
    logp_RV = log_softmax(student_RV, temperature)
    total, grad_RV = 0.0, np.zeros_like(logp_RV)
    halves = ((rows.distil_R, True), (rows.policy_R, False))
    for scale_R, distilled in halves:
        chosen = np.flatnonzero(scale_R > 0)
        if not chosen.size:
            continue
        part, logp_part = _take(rows, chosen), logp_RV[chosen]
        if distilled:
            logq_part = log_softmax(np.asarray(teacher_RV)[chosen], temperature)
            value_R, grad_part = distil_rows(logp_part, logq_part, part, cfg)
            factor_R = scale_R[chosen] * importance_weight(at(logp_part, part.ids_R), part.rollout_logps_R, cfg)
        else:
            value_R, grad_part = policy_rows(logp_part, part, cfg)
            factor_R = scale_R[chosen]
        total += float(factor_R @ value_R)
        grad_RV[chosen] += factor_R[:, None] * grad_part
    through_softmax = grad_RV - np.exp(logp_RV) * grad_RV.sum(axis=-1, keepdims=True)
    return total, through_softmax / temperature


def _take(rows: Rows, chosen: Indices) -> Rows:
    return Rows(**{name: values[chosen] for name, values in vars(rows).items()})


def loss_and_grad(  # noqa: PLR0913  the oracle takes a step's arrays as they are
    student_logits_BTV: npt.ArrayLike,
    teacher_logits_BTV: npt.ArrayLike | None,
    ids_BT: npt.ArrayLike,
    rollout_logps_BT: npt.ArrayLike,
    mask_BT: npt.ArrayLike,
    cfg: ObjectiveConfig,
    temperature: float = 1.0,
    *,
    advantages_B: npt.ArrayLike | None = None,
    distil_weights_B: npt.ArrayLike | None = None,
    policy_weights_B: npt.ArrayLike | None = None,
    token_weights_BT: npt.ArrayLike | None = None,
) -> tuple[float, Array]:
    """Return the loss of a step and its gradient with respect to the student's raw logits (B,T,V).

    Masks are 0 or 1. Weights not given come from the kind alone; those of tokens multiply both halves. What stands in
    uncounted rows is never read; nothing counted gives 0. Raises ValueError when a half lacks what it needs.
    """
    student = np.asarray(student_logits_BTV, dtype=np.float64)
    counted_BT = np.asarray(mask_BT) > 0
    where = np.nonzero(counted_BT)
    scale_2B = [
        token_scale(counted_BT.sum(axis=1), np.full(len(student), kind) if given is None else given, cfg.aggregation)
        for given, kind in zip((distil_weights_B, policy_weights_B), kind_weights(cfg), strict=True)
    ]
    if advantages_B is None and scale_2B[1].any():
        raise ValueError("the policy term needs advantages_B")
    if teacher_logits_BTV is None and scale_2B[0].any():
        raise ValueError("the distillation term needs teacher_logits_BTV")
    per_sample = [*scale_2B, np.zeros(len(student)) if advantages_B is None else np.asarray(advantages_B, np.float64)]
    distil_R, policy_R, advantage_R = (values[where[0]] for values in per_sample)
    if token_weights_BT is not None:
        factor_R = np.asarray(token_weights_BT, dtype=np.float64)[where]
        distil_R, policy_R = distil_R * factor_R, policy_R * factor_R
    teacher_RV = None if teacher_logits_BTV is None else np.asarray(teacher_logits_BTV, dtype=np.float64)[where]
    ids_R, rollout_R = np.asarray(ids_BT)[where], np.asarray(rollout_logps_BT, dtype=np.float64)[where]
    sequence_R = np.zeros(len(ids_R))
    if cfg.support == "sequence" and teacher_RV is not None:
        gap_R = at(log_softmax(student[where], temperature), ids_R) - at(log_softmax(teacher_RV, temperature), ids_R)
        sequence_R = sequence_coefficients(gap_R, where[0], len(student))[where[0]]
    rows = Rows(ids_R, rollout_R, distil_R, policy_R, advantage_R, sequence_R)
    loss, grad_RV = row_loss_and_grad(student[where], teacher_RV, rows, cfg, temperature)
    grad_BTV = np.zeros_like(student)
    grad_BTV[where] = grad_RV
    return loss, grad_BTV


# --- the teacher's weights ---------------------------------------------------------------------------------


def ema_closed_form(initial: npt.ArrayLike, students: Sequence[npt.ArrayLike], rate: float) -> Array:
    """Return the EMA teacher after one update per student, in order: the closed form of stepwise updates."""
    keep = 1.0 - rate
    teacher = keep ** len(students) * np.asarray(initial, dtype=np.float64)
    for i, student in enumerate(students, start=1):
        teacher = teacher + rate * keep ** (len(students) - i) * np.asarray(student, dtype=np.float64)
    return np.asarray(teacher)
