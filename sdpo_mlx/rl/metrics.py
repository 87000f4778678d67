"""The metrics of one step, as `step` events hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from sdpo_mlx.backends.base import Update
from sdpo_mlx.core.statistics import clustered
from sdpo_mlx.rl.distillation import SILENT
from sdpo_mlx.types import DistillSample, Rollout, RolloutGroup, Skip, SkipReason, TeacherContext

TRUNCATED_MOST = 1 / 3  # of the rollouts: those are seldom graded fairly, and are never a demonstration
_UPDATE: Mapping[str, str] = {  # names in events, and of the fields of `Update`
    "loss": "loss",
    "divergence/mean": "divergence",
    "importance/mean": "importance_mean",
    "importance/clipped": "importance_clipped",
    "entropy": "entropy",
    "grad/norm": "grad_norm",
}


@dataclass(frozen=True)
class StepFacts:
    """Measurements of the loop for one step: seconds of wall clock, counters, bytes.

    `learn_seconds` includes the teacher's forward; `generations` counts every rollout since the start.
    """

    learning_rate: float
    generations: int
    generate_seconds: float
    grade_seconds: float
    learn_seconds: float
    total_seconds: float
    memory: Mapping[str, int]


def step_metrics(
    groups: Sequence[RolloutGroup],
    samples: Sequence[DistillSample],
    contexts: Iterable[TeacherContext | None],
    skips: Sequence[Skip],
    update: Update | None,
    facts: StepFacts,
) -> dict[str, float]:
    """Return all numbers of a step event under their flat names, NaN if there is nothing to average.

    Shares are of 1; `contexts` may contain None for rollouts without one. `update` is None if nothing was learned.
    """
    graded = [[each for each in group.feedback if each.kind != "grader_error"] for group in groups]
    feedback = [each for group in graded for each in group]
    low, high = clustered([[each.success for each in group] for group in graded], seed=facts.generations)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    seen = [context for context in contexts if context is not None]
    demonstrated = sum(context.demonstration is not None for context in seen)
    with_feedback = sum(context.feedback is not None for context in seen)
    learned = {sample.problem_id for sample in samples if sample.distil_weight or sample.policy_weight}
    silent = {skip.problem_id for skip in skips if skip.reason in SILENT} - learned
    teacher_seconds = update.teacher_seconds if update else 0.0
    known_seconds = facts.generate_seconds + facts.grade_seconds + facts.learn_seconds
    return {
        "reward/mean": mean([each.reward for each in feedback]),
        "success/rate": mean([each.success for each in feedback]),
        "success/low": low,
        "success/high": high,
        "feedback/rate": mean([bool(each.text.strip()) for each in feedback]),
        "groups/solved": mean([any(each.success for each in group.feedback) for group in groups]),
        "groups/no_signal": mean([group.problem.id in silent for group in groups]),
        "teacher/with_demonstration": demonstrated / len(rollouts) if rollouts else math.nan,
        "teacher/with_feedback": with_feedback / len(rollouts) if rollouts else math.nan,
        **{f"skip/{reason}": sum(skip.reason == reason for skip in skips) for reason in get_args(SkipReason)},
        # Lengths are of whole episodes: all tokens of the model, and the number of turns.
        "length/mean": mean([_tokens(rollout) for rollout in rollouts]),
        "length/truncated": mean([rollout.finish == "length" for rollout in rollouts]),
        "turns/mean": mean([len(rollout.turns) for rollout in rollouts]),
        **{name: getattr(update, field) if update else math.nan for name, field in _UPDATE.items()},
        "lr": facts.learning_rate,
        "time/generate": facts.generate_seconds,
        "time/grade": facts.grade_seconds,
        "time/teacher": teacher_seconds,
        "time/learn": max(0.0, facts.learn_seconds - teacher_seconds),
        # Grading overlaps with generation, so the rest is floored at zero.
        "time/other": max(0.0, facts.total_seconds - known_seconds),
        "tokens/generated": sum(map(_tokens, rollouts)),
        "tokens/learned": update.tokens if update is not None and update.applied else 0,
        "generations/total": facts.generations,
        **{f"memory/{phase}": facts.memory.get(phase, math.nan) for phase in ("peak", "generate", "teacher", "learn")},
    }


def _tokens(rollout: Rollout) -> int:
    return sum(turn.ids_T.size for turn in rollout.turns)


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of no values."""
    return math.fsum(values) / len(values) if values else math.nan
