"""`objective.py` in PyTorch, one chunk of rows at a time: float32 whatever comes in, differentiable in the student.

As in `mlx/losses.py`: the caller differentiates one scalar with respect to the hidden states, and all
normalisation is in the rows' weights, so that chunks and micro-batches simply add up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdpo_mlx.backends.loss_head import Rows, RowStatistics
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.objective import LOG_RATIO_LIMIT, TAIL_CEILING


def row_loss(
    student_logits_RV: Tensor,
    teacher_logits_RV: Tensor | None,
    rows: Rows,
    cfg: ObjectiveConfig,
    temperature: float,
) -> tuple[Tensor, RowStatistics]:
    """The weighted sum of both halves over the rows (a scalar), and the rows' statistics.

    Logits are raw and must be finite in every row; teacher logits may be None when no row is distilled.
    """
    logp_RV = log_softmax(student_logits_RV, temperature)
    log_p_R = at(logp_RV, rows.ids_R)
    ratio_R = (log_p_R - rows.rollout_logps_R).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    total = (rows.policy_R * policy_rows(ratio_R, rows.advantage_R, cfg)).sum()
    divergence_R = log_q_R = torch.zeros_like(log_p_R)
    if teacher_logits_RV is not None:
        logq_RV = log_softmax(teacher_logits_RV.detach(), temperature)
        log_q_R = at(logq_RV, rows.ids_R)
        if cfg.support in ("sampled", "sequence"):
            divergence_R = (log_p_R - log_q_R).detach()
            term_R = (rows.sequence_R if cfg.support == "sequence" else divergence_R) * log_p_R
        else:
            term_R = divergence_R = divergence_rows(logp_RV, logq_RV, cfg)
        free = cfg.importance_clip is None
        weight_R = torch.ones_like(ratio_R) if free else ratio_R.detach().clamp(max=cfg.importance_clip)
        total = total + (rows.distil_R * weight_R * term_R).sum()
    entropy_R = -(logp_RV.detach().exp() * logp_RV.detach()).sum(-1)
    figures = (divergence_R, entropy_R, log_p_R, log_q_R, ratio_R)
    return total, RowStatistics(*(figure.detach() for figure in figures))


def log_softmax(logits_RV: Tensor, temperature: float) -> Tensor:
    """Float32 log-probabilities at a temperature."""
    return torch.log_softmax(logits_RV.float() / temperature, dim=-1)


def divergence_rows(logp_RV: Tensor, logq_RV: Tensor, cfg: ObjectiveConfig) -> Tensor:
    """D(p, q) of each row on the configured support."""
    k = cfg.top_k if cfg.support == "top_k" else None
    if k is None or k >= logp_RV.shape[-1]:
        return divergence(logp_RV, logq_RV, cfg.alpha)
    ids_RK = logp_RV.detach().topk(k, dim=-1).indices
    logp_RS, logq_RS = (on_support(each, ids_RK, cfg.tail) for each in (logp_RV, logq_RV))
    return divergence(logp_RS, logq_RS, cfg.alpha)


def on_support(logp_RV: Tensor, ids_RK: Tensor, tail: bool) -> Tensor:
    """Log-probabilities at the ids, followed by the tail bucket or renormalised.

    The tail is summed over the other ids: log(1 - mass) would lose all digits if the student is nearly certain.
    """
    logp_RK = logp_RV.gather(-1, ids_RK)
    if not tail:
        return logp_RK - logp_RK.logsumexp(-1, keepdim=True)
    others_RV = logp_RV.exp().scatter(-1, ids_RK, 0.0)
    tail_R1 = others_RV.sum(-1, keepdim=True).clamp(min=-math.expm1(TAIL_CEILING)).log()
    return torch.cat([logp_RK, tail_R1], dim=-1)


def divergence(logp_RS: Tensor, logq_RS: Tensor, alpha: float) -> Tensor:
    """D(p, q) of each row; the mixture in log space, so that a large log-ratio cannot overflow."""
    if alpha == 0.0:
        return (logq_RS.exp() * (logq_RS - logp_RS)).sum(-1)
    if alpha == 1.0:
        return (logp_RS.exp() * (logp_RS - logq_RS)).sum(-1)
    logm = torch.logaddexp(logp_RS + math.log1p(-alpha), logq_RS + math.log(alpha))
    student = logp_RS.exp() * (logp_RS - logm)
    return ((1 - alpha) * student + alpha * logq_RS.exp() * (logq_RS - logm)).sum(-1)


def policy_rows(ratio_R: Tensor, advantage_R: Tensor, cfg: ObjectiveConfig) -> Tensor:
    """The GRPO term of each row before its weight."""
    free_R = ratio_R * advantage_R
    held_R = ratio_R.detach().clamp(1.0 - cfg.clip_low, 1.0 + cfg.clip_high) * advantage_R
    term_R = torch.where(free_R <= held_R, free_R, held_R)
    if cfg.dual_clip is not None:
        bound_R = cfg.dual_clip * advantage_R
        term_R = torch.where((advantage_R < 0) & (term_R < bound_R), bound_R, term_R)
    return -term_R


def at(values_RV: Tensor, ids_R: Tensor) -> Tensor:
    """The entry of each row at its id."""
    return values_RV.gather(-1, ids_R[:, None])[:, 0]
