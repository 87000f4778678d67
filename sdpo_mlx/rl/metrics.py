"""The metrics of one step, as `step` events hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from sdpo_mlx.backends.base import Update
from sdpo_mlx.types import DistillSample, Rollout, RolloutGroup, Skip, SkipReason, TeacherContext


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
    return {
        **_rewards(groups, samples, skips),
        **_contexts(contexts, sum(len(group.rollouts) for group in groups)),
        **{f"skip/{reason}": sum(skip.reason == reason for skip in skips) for reason in get_args(SkipReason)},
        **_lengths(groups),
        **_learning(update, facts),
        **_times(update, facts),
        "tokens/generated": sum(_tokens(rollout) for group in groups for rollout in group.rollouts),
        "tokens/learned": update.tokens if update is not None and update.applied else 0,
        "generations/total": facts.generations,
        **{f"memory/{phase}": facts.memory.get(phase, math.nan) for phase in ("peak", "generate", "teacher", "learn")},
    }


def _rewards(
    groups: Sequence[RolloutGroup], samples: Sequence[DistillSample], skips: Sequence[Skip]
) -> dict[str, float]:
    """Means over graded rollouts; shares over groups."""
    graded = [each for group in groups for each in group.feedback if each.kind != "grader_error"]
    teaching = {sample.problem_id for sample in samples if sample.distil_weight or sample.policy_weight}
    silent = {skip.problem_id for skip in skips if skip.reason == "no_signal"} - teaching
    return {
        "reward/mean": _mean([each.reward for each in graded]),
        "success/rate": _mean([each.success for each in graded]),
        "groups/solved": _mean([any(each.success for each in group.feedback) for group in groups]),
        "groups/no_signal": _mean([group.problem.id in silent for group in groups]),
    }


def _contexts(contexts: Iterable[TeacherContext | None], rollouts: int) -> dict[str, float]:
    seen = [context for context in contexts if context is not None]
    demonstrated = sum(context.demonstration is not None for context in seen)
    with_feedback = sum(context.feedback is not None for context in seen)
    return {
        "teacher/with_demonstration": demonstrated / rollouts if rollouts else math.nan,
        "teacher/with_feedback": with_feedback / rollouts if rollouts else math.nan,
    }


def _lengths(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Lengths of whole episodes: all tokens of the model, and the number of turns."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        "length/mean": _mean([_tokens(rollout) for rollout in rollouts]),
        "length/truncated": _mean([rollout.finish == "length" for rollout in rollouts]),
        "turns/mean": _mean([len(rollout.turns) for rollout in rollouts]),
    }


def _tokens(rollout: Rollout) -> int:
    return sum(turn.ids_T.size for turn in rollout.turns)


def _learning(update: Update | None, facts: StepFacts) -> dict[str, float]:
    return {
        "loss": update.loss if update else math.nan,
        "divergence/mean": update.divergence if update else math.nan,
        "importance/mean": update.importance_mean if update else math.nan,
        "importance/clipped": update.importance_clipped if update else math.nan,
        "entropy": update.entropy if update else math.nan,
        "grad/norm": update.grad_norm if update else math.nan,
        "lr": facts.learning_rate,
    }


def _times(update: Update | None, facts: StepFacts) -> dict[str, float]:
    """Seconds; grading overlaps with generation, so the rest is floored at zero."""
    teacher = update.teacher_seconds if update else 0.0
    known = facts.generate_seconds + facts.grade_seconds + facts.learn_seconds
    return {
        "time/generate": facts.generate_seconds,
        "time/grade": facts.grade_seconds,
        "time/teacher": teacher,
        "time/learn": max(0.0, facts.learn_seconds - teacher),
        "time/other": max(0.0, facts.total_seconds - known),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
