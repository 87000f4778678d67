"""Optimizer steps of one rollout batch, in minibatches of whole problems, and their combined metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sdpo_mlx.backends.base import Policy, Update
from sdpo_mlx.config import Config, TrainConfig
from sdpo_mlx.objective import importance_weight
from sdpo_mlx.types import DistillSample, FloatArray

SampleKey = tuple[str, int, int]  # problem id, index of the rollout, turn
_AVERAGED = ("loss", "divergence", "entropy", "importance_mean", "importance_clipped", "grad_norm")
_DECAY = 0.2  # of schedule wsd: share of the steps, at their end, in which the rate falls to 0


@dataclass(frozen=True)
class LearnResult:
    """The update of a rollout batch (None if no token was learned) and log q - log p for each token.

    `steps` is how many optimizer steps were taken.
    """

    update: Update | None
    divergence: Mapping[SampleKey, FloatArray]
    steps: int = 0


def learn(
    policy: Policy, samples: Sequence[DistillSample], cfg: Config, step: int, interrupted: Callable[[], bool]
) -> LearnResult:
    """Take one optimizer step for each minibatch, then update the teacher if any step was applied.

    Only the first minibatch can be interrupted, so that a checkpoint never falls between two of them.
    Raises KeyboardInterrupt with nothing changed.
    """
    updates: list[Update] = []
    divergence: dict[SampleKey, FloatArray] = {}
    if cfg.objective.importance == "reference":
        samples = before_first_update(policy, samples, cfg)
    for part in minibatches(samples, cfg.train.updates_per_batch):
        update = policy.learn(
            part,
            cfg.objective,
            learning_rate(step, cfg.train),
            temperature=cfg.rollout.temperature,
            interrupted=(lambda: False) if updates else interrupted,
        )
        keys = [(s.problem_id, s.index, s.turn) for s in part]
        divergence.update(zip(keys, update.divergence_T, strict=False))
        updates.append(update)
    steps = sum(update.applied for update in updates)
    if steps:
        policy.update_teacher(cfg.teacher)
    return LearnResult(combine(updates), divergence, steps)


def before_first_update(policy: Policy, samples: Sequence[DistillSample], cfg: Config) -> list[DistillSample]:
    """Return the samples with ratios to the policy as it is now; its own ratio to sampling weighs the tokens.

    The second factor is what sampling and scoring compute differently, the first what the batch's updates change.
    """
    sequences, spans = [s.student_ids for s in samples], [s.student_span for s in samples]
    scored = policy.score("student", sequences, spans, temperature=cfg.rollout.temperature)
    made = []
    for sample, scores in zip(samples, scored, strict=True):
        logps = scores.logps_T.astype(np.float64), sample.rollout_logps_T.astype(np.float64)
        weights_T = importance_weight(*logps, cfg.objective).astype(np.float32)
        made.append(replace(sample, rollout_logps_T=scores.logps_T, token_weights_T=weights_T))
    return made


def learning_rate(step: int, cfg: TrainConfig) -> float:
    """Return the rate of the step after `step` completed ones: warm-up, then `train.schedule` (wsd: 2404.06395)."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / (cfg.warmup_steps + 1)
    share = min(1.0, (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps))
    factor = {
        "wsd": min(1.0, (1.0 - share) / _DECAY),
        "constant": 1.0,
        "linear": 1.0 - share,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * share)),
    }
    return cfg.learning_rate * factor[cfg.schedule]


def minibatches(samples: Sequence[DistillSample], count: int) -> list[list[DistillSample]]:
    """Split the samples into at most `count` parts; all rollouts of a problem stay together."""
    names = list(dict.fromkeys(sample.problem_id for sample in samples))
    parts = [set(names[start::count]) for start in range(min(count, len(names)))]
    return [[sample for sample in samples if sample.problem_id in part] for part in parts]


def combine(updates: Sequence[Update]) -> Update | None:
    """Return token-weighted means over the updates; None if no update had a token to learn from."""
    counted = [update for update in updates if update.tokens]
    if not counted:
        return None
    total = sum(update.tokens for update in counted)
    means = {name: float(sum(getattr(u, name) * u.tokens for u in counted) / total) for name in _AVERAGED}
    return Update(
        applied=any(update.applied for update in counted),
        reason=next((update.reason for update in counted if not update.applied), ""),
        **means,
        tokens=total,
        divergence_T=tuple(array for update in counted for array in update.divergence_T),
        teacher_seconds=sum(update.teacher_seconds for update in counted),
        non_finite=tuple(dict.fromkeys(name for update in counted for name in update.non_finite)),
        warnings=tuple(dict.fromkeys(message for update in counted for message in update.warnings)),
    )
