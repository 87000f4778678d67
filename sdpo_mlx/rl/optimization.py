"""Optimizer steps of one rollout batch: minibatches of whole problems, and one set of figures for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sdpo_mlx.backends.base import Policy, Update
from sdpo_mlx.config import Config
from sdpo_mlx.rl.schedule import learning_rate
from sdpo_mlx.types import DistillSample, FloatArray

SampleKey = tuple[str, int, int]  # problem id, index of the rollout, turn


@dataclass(frozen=True)
class Learned:
    """What a rollout batch taught; `update` is None where there was nothing, `divergence` is log q - log p a token."""

    update: Update | None
    divergence: Mapping[SampleKey, FloatArray]


def learn(
    policy: Policy, samples: Sequence[DistillSample], cfg: Config, step: int, interrupted: Callable[[], bool]
) -> Learned:
    """One optimizer step a minibatch, then the teacher's; nothing moves where nothing was applied.

    Only the first may be interrupted, so that a saved state never stands between two of them.
    """
    updates: list[Update] = []
    divergence: dict[SampleKey, FloatArray] = {}
    for part in minibatches(samples, cfg.train.updates_per_batch):
        update = policy.learn(
            part,
            cfg.objective,
            learning_rate(step, cfg.train),
            temperature=cfg.rollout.temperature,
            interrupted=(lambda: False) if updates else interrupted,
        )
        places = [(s.problem_id, s.index, s.turn) for s in part]
        divergence.update(zip(places, update.divergence_T, strict=False))
        updates.append(update)
    if any(update.applied for update in updates):
        policy.update_teacher(cfg.teacher)
    return Learned(combine(updates), divergence)


def minibatches(samples: Sequence[DistillSample], count: int) -> list[list[DistillSample]]:
    """At most `count` parts, the problems dealt out in turn; a problem's rollouts stay together."""
    names = list(dict.fromkeys(sample.problem_id for sample in samples))
    parts = [set(names[start::count]) for start in range(min(count, len(names)))]
    return [[sample for sample in samples if sample.problem_id in part] for part in parts]


def combine(updates: Sequence[Update]) -> Update | None:
    """Token-weighted means over the updates of a batch; None where none had a token to learn from."""
    counted = [update for update in updates if update.tokens]
    if not counted:
        return None
    total = sum(update.tokens for update in counted)

    def mean(name: str) -> float:
        return float(sum(getattr(update, name) * update.tokens for update in counted) / total)

    return Update(
        applied=any(update.applied for update in counted),
        reason=next((update.reason for update in counted if not update.applied), ""),
        loss=mean("loss"),
        divergence=mean("divergence"),
        entropy=mean("entropy"),
        importance_mean=mean("importance_mean"),
        importance_clipped=mean("importance_clipped"),
        grad_norm=mean("grad_norm"),
        tokens=total,
        divergence_T=tuple(array for update in counted for array in update.divergence_T),
        teacher_seconds=sum(update.teacher_seconds for update in counted),
        non_finite=tuple(dict.fromkeys(name for update in counted for name in update.non_finite)),
        warnings=tuple(dict.fromkeys(word for update in counted for word in update.warnings)),
    )
