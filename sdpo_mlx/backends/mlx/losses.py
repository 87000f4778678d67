"""`objective.py` in MLX, one chunk of rows at a time: float32 whatever comes in, differentiable in the student.

The head runs over a few response positions, `row_loss` turns them into one scalar, and the caller
differentiates that with respect to the hidden states. All normalisation is in the rows' weights
(`objective.token_scale`), so that chunks and micro-batches simply add up.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from sdpo_mlx.backends.loss_head import Rows, RowStatistics
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.objective import LOG_RATIO_LIMIT, TAIL_CEILING

SUM_BLOCK = 128


class Distribution(NamedTuple):
    """Log-probabilities and probabilities of rows, kept together: an exponential costs a CPU thirty products."""

    logs: mx.array
    probs: mx.array


def row_loss(
    student_logits_RV: mx.array,
    teacher_logits_RV: mx.array | None,
    rows: Rows,
    cfg: ObjectiveConfig,
    temperature: float,
) -> tuple[mx.array, RowStatistics]:
    """The weighted sum of both halves over the rows (a scalar), and the rows' statistics.

    Logits are raw and must be finite in every row; teacher logits may be None when no row is distilled.
    """
    student = distribution(student_logits_RV, temperature)
    log_p_R = at(student.logs, rows.ids_R)
    ratio_R = mx.exp(mx.clip(log_p_R - rows.rollout_logps_R, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    total = mx.sum(rows.policy_R * policy_rows(ratio_R, rows.advantage_R, cfg))
    divergence_R = log_q_R = mx.zeros_like(log_p_R)
    if teacher_logits_RV is not None:
        teacher = Distribution(*map(mx.stop_gradient, distribution(teacher_logits_RV, temperature)))
        log_q_R = at(teacher.logs, rows.ids_R)
        if cfg.support in ("sampled", "sequence"):
            divergence_R = mx.stop_gradient(log_p_R - log_q_R)
            term_R = (rows.sequence_R if cfg.support == "sequence" else divergence_R) * log_p_R
        else:
            term_R = divergence_R = divergence_rows(student, teacher, cfg)
        weight_R = mx.ones_like(ratio_R) if cfg.importance_clip is None else mx.minimum(ratio_R, cfg.importance_clip)
        total = total + mx.sum(rows.distil_R * mx.stop_gradient(weight_R) * term_R)
    entropy_R = -row_sum(mx.stop_gradient(student.probs) * mx.stop_gradient(student.logs))
    figures = (divergence_R, entropy_R, log_p_R, log_q_R, ratio_R)
    return total, RowStatistics(*(mx.stop_gradient(figure) for figure in figures))


def log_softmax(logits_RV: mx.array, temperature: float) -> mx.array:
    """Float32 log-probabilities of rows."""
    return distribution(logits_RV, temperature).logs


def distribution(logits_RV: mx.array, temperature: float) -> Distribution:
    """Float32 softmax; the maximum is taken off first so that large logits keep their digits."""
    raw_RV = logits_RV.astype(mx.float32)
    shifted = (raw_RV - mx.stop_gradient(mx.max(raw_RV, axis=-1, keepdims=True))) / temperature
    weights_RV = mx.exp(shifted)
    total_R1 = row_sum(weights_RV)[:, None]
    return Distribution(shifted - mx.log(total_R1), weights_RV / total_R1)


def row_sum(values_RS: mx.array) -> mx.array:
    """Sum of each row, in blocks: adding 152k float32 one by one on the CPU is wrong in the fourth digit."""
    rows, size = values_RS.shape
    whole = size - size % SUM_BLOCK
    if not whole:
        return mx.sum(values_RS, axis=-1)
    total_R = mx.sum(mx.sum(values_RS[:, :whole].reshape(rows, -1, SUM_BLOCK), axis=-1), axis=-1)
    return total_R if whole == size else total_R + mx.sum(values_RS[:, whole:], axis=-1)


def divergence_rows(student: Distribution, teacher: Distribution, cfg: ObjectiveConfig) -> mx.array:
    """D(p, q) of each row on the configured support."""
    k = cfg.top_k if cfg.support == "top_k" else None
    if k is None or k >= student.logs.shape[-1]:
        return divergence(student, teacher, cfg.alpha)
    ids_RK = mx.argpartition(-mx.stop_gradient(student.logs), kth=k - 1, axis=-1)[..., :k]
    return divergence(on_support(student, ids_RK, cfg.tail), on_support(teacher, ids_RK, cfg.tail), cfg.alpha)


def on_support(rows: Distribution, ids_RK: mx.array, tail: bool) -> Distribution:
    """The distribution at the ids, followed by the tail bucket or renormalised.

    The tail is summed over the other ids: log(1 - mass) is the same number, but in float32 it, and the
    forward KL's gradient through it, lose all digits if the student is nearly certain.
    """
    logs_RK = mx.take_along_axis(rows.logs, ids_RK, axis=-1)
    if tail:
        others_RV = mx.put_along_axis(rows.probs, ids_RK, mx.array(0.0), axis=-1)
        tail_R1 = mx.log(mx.maximum(row_sum(others_RV), -math.expm1(TAIL_CEILING)))[:, None]
        logs_RS = mx.concatenate([logs_RK, tail_R1], axis=-1)
    else:
        logs_RS = logs_RK - mx.logsumexp(logs_RK, axis=-1, keepdims=True)
    return Distribution(logs_RS, mx.exp(logs_RS))


def divergence(student: Distribution, teacher: Distribution, alpha: float) -> mx.array:
    """D(p, q) of each row; the mixture in log space, so that a large log-ratio cannot overflow."""
    (logp_RS, p_RS), (logq_RS, q_RS) = student, teacher
    if alpha == 0.0:
        return row_sum(q_RS * (logq_RS - logp_RS))
    if alpha == 1.0:
        return row_sum(p_RS * (logp_RS - logq_RS))
    logm = mx.logaddexp(logp_RS + math.log1p(-alpha), logq_RS + math.log(alpha))
    return row_sum((1 - alpha) * p_RS * (logp_RS - logm) + alpha * q_RS * (logq_RS - logm))


def policy_rows(ratio_R: mx.array, advantage_R: mx.array, cfg: ObjectiveConfig) -> mx.array:
    """The GRPO term of each row before its weight."""
    free_R = ratio_R * advantage_R
    held_R = mx.stop_gradient(mx.clip(ratio_R, 1.0 - cfg.clip_low, 1.0 + cfg.clip_high)) * advantage_R
    term_R = mx.where(free_R <= held_R, free_R, held_R)
    if cfg.dual_clip is not None:
        bound_R = cfg.dual_clip * advantage_R
        term_R = mx.where((advantage_R < 0) & (term_R < bound_R), bound_R, term_R)
    return -term_R


def at(values_RV: mx.array, ids_R: mx.array) -> mx.array:
    """The entry of each row at its id."""
    return mx.take_along_axis(values_RV, ids_R[:, None], axis=-1)[:, 0]
