"""Turn rollout groups into distillation samples: every rollout becomes a sample or a Skip with a reason.

Student and teacher spans are aligned by construction: both sequences are a prompt followed by the sampled ids, nothing
is decoded and encoded again. A teacher prompt over its budget loses the middle of its feedback, then of the attempt,
then of the demonstration; the problem, the chat frame and earlier turns are never cut. An episode of n turns gives n
samples, so that only the model's own tokens count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.core.text import shorten_middle
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.objective import advantages, question_weights, sample_weights
from sdpo_mlx.teacher import attempt_for, history, teacher_context, teacher_messages
from sdpo_mlx.types import (
    DistillSample,
    IntArray,
    Message,
    Problem,
    Rollout,
    RolloutGroup,
    Skip,
    SkipReason,
    TeacherContext,
)

MIN_PART = 200  # characters below which a section is not cut further
MIN_CUT = 32  # characters per round, so that shrinking ends
SILENT: tuple[SkipReason, ...] = ("no_signal", "all_correct")
NO_ADVANTAGE = 1e-9  # rounding error of the mean in a group of equal rewards


@dataclass(frozen=True)
class Batch:
    """One step's samples, their teacher contexts by (problem id, index), and the skipped rollouts.

    For an episode of several turns this is the context of the latest turn that has one; earlier turns have the same
    context with fewer messages.
    """

    samples: tuple[DistillSample, ...]
    contexts: Mapping[tuple[str, int], TeacherContext]
    skips: tuple[Skip, ...]
    agreements: Mapping[str, Sequence[float]] = field(default_factory=dict)  # what set the shares (`rl/agreement.py`)


@dataclass(frozen=True)
class Shares:
    """Objective `auto`: the share of distillation in a rollout's loss, by what its context shows; GRPO has the rest.

    A context with both a demonstration and feedback counts as one with a demonstration.
    """

    demonstration: float = 1.0
    feedback: float = 1.0


@dataclass(frozen=True)
class _Turn:
    """One turn of one rollout; the feedback on the episode counts for each of its turns."""

    group: RolloutGroup
    index: int
    turn: int
    rollout: Rollout

    def skip(self, reason: SkipReason) -> tuple[Skip, None]:
        """Return a Skip for this turn, and no context."""
        return Skip(reason, self.group.problem.id, self.index, self.turn), None


def distillation_batch(
    groups: Sequence[RolloutGroup],
    chat: Chat,
    teacher: TeacherConfig,
    objective: ObjectiveConfig,
    *,
    context_length: int,
    seed: int,
    shares: Shares | None = None,
) -> Batch:
    """Build the samples of one step; `seed` is derived from run and step, lengths are in tokens.

    `shares` replace the objective's `hybrid_weight`. A rollout without advantage has policy weight 0, so that GRPO's
    mean counts only tokens with a signal. If its context does not fit, a rollout keeps its policy-gradient part.
    """
    builder = _Builder(chat, teacher, objective, context_length, seed, shares)
    uniform = objective.question_weight == "uniform"
    weights = [1.0] * len(groups) if uniform else question_weights([group.pass_rate for group in groups])
    outcomes = [
        builder.outcome(_Turn(group, index, turn, rollout), float(weight), advantage)
        for group, weight in zip(groups, weights, strict=True)
        for index, advantage in enumerate(_advantages(group, objective))
        for turn, rollout in enumerate(group.rollouts[index].turns)
    ]
    samples = tuple(result for result, _ in outcomes if isinstance(result, DistillSample))
    if objective.aggregation == "reference":  # skipped rollouts are in its mean, with a loss of 0
        graded = [result for result, _ in outcomes if isinstance(result, DistillSample) or result.reason in SILENT]
        samples = tuple(_scaled(sample, len(samples) / len(graded)) for sample in samples)
    skips = tuple(result for result, _ in outcomes if isinstance(result, Skip))
    contexts = {(result.problem_id, result.index): context for result, context in outcomes if context is not None}
    return Batch(samples, contexts, skips)


def _scaled(sample: DistillSample, factor: float) -> DistillSample:
    weights = sample.distil_weight * factor, sample.policy_weight * factor
    return replace(sample, distil_weight=weights[0], policy_weight=weights[1])


def _advantages(group: RolloutGroup, objective: ObjectiveConfig) -> list[float]:
    """Return one advantage for each rollout; ungraded ones get 0 and do not count in the mean."""
    graded = [i for i, feedback in enumerate(group.feedback) if feedback.kind != "grader_error"]
    values = [0.0] * len(group.rollouts)
    for i, value in zip(graded, advantages([group.feedback[i].reward for i in graded], objective), strict=True):
        values[i] = float(value) if abs(value) > NO_ADVANTAGE else 0.0
    return values


@dataclass(frozen=True)
class _Builder:
    """Builds one outcome for each turn; equal contexts are rendered once."""

    chat: Chat
    teacher: TeacherConfig
    objective: ObjectiveConfig
    context_length: int
    seed: int
    shares: Shares | None = None
    rendered: dict[tuple[str, tuple[tuple[str, str], ...]], IntArray] = field(default_factory=dict)

    def outcome(
        self, answer: _Turn, question: float, advantage: float
    ) -> tuple[DistillSample | Skip, TeacherContext | None]:
        """Return a sample and its teacher context, or a Skip."""
        rollout, feedback = answer.rollout, answer.group.feedback[answer.index]
        if feedback.kind == "grader_error":
            return answer.skip("grader_error")
        if rollout.ids_T.size == 0:
            return answer.skip("no_tokens")
        if rollout.prompt_ids.size + rollout.ids_T.size > self.context_length:
            return answer.skip("too_long")
        context = teacher_context(answer.group, answer.index, self.teacher, self.seed, answer.turn)
        objective = self._objective(context)
        if not question * sample_weights(objective, success=feedback.success, has_context=True)[0]:
            context = None
        fitted = self._fit(answer, context) if context else None
        distil, policy = sample_weights(objective, success=feedback.success, has_context=fitted is not None)
        distil, policy = distil * question, policy * question if advantage else 0.0
        if not distil and not policy:
            silent: SkipReason = "all_correct" if answer.group.pass_rate == 1.0 else "no_signal"
            return answer.skip("too_long" if context and not fitted else silent)
        context, prompt = fitted or (None, np.zeros(0, dtype=np.int32))
        student = np.concatenate([rollout.prompt_ids, rollout.ids_T]).astype(np.int32)
        teacher = np.concatenate([prompt, rollout.ids_T]).astype(np.int32) if fitted else prompt
        sample = DistillSample(
            problem_id=answer.group.problem.id,
            index=answer.index,
            student_ids=student,
            student_span=(rollout.prompt_ids.size, student.size),
            teacher_ids=teacher,
            teacher_span=(prompt.size, teacher.size),
            rollout_logps_T=rollout.logps_T,
            distil_weight=distil,
            policy_weight=policy,
            advantage=advantage,
            turn=answer.turn,
        )
        return sample, context

    def _objective(self, context: TeacherContext | None) -> ObjectiveConfig:
        """Return the objective of a rollout with this context."""
        if self.shares is None:
            return self.objective
        with_feedback = context is not None and context.demonstration is None
        share = self.shares.feedback if with_feedback else self.shares.demonstration
        return self.objective.model_copy(update={"hybrid_weight": 1.0 - share})

    def _fit(self, answer: _Turn, context: TeacherContext) -> tuple[TeacherContext, IntArray] | None:
        """Return the context within its token budget and its prompt ids; None if nothing more can be cut."""
        problem, budget = answer.group.problem, self.context_length - answer.rollout.ids_T.size
        budget = min(self.teacher.max_context_tokens, budget)
        earlier = history(answer.group.rollouts[answer.index].earlier[: answer.turn])
        ids = self._render(problem, context.messages)
        parts = {
            "feedback": context.feedback,
            "attempt": attempt_for(answer.group, answer.index, self.teacher),
            "demonstration": context.demonstration.text if context.demonstration else None,
        }
        for name, full in tuple(parts.items()):
            limit = len(full or "")
            while full and ids.size > budget and limit > MIN_PART:
                per_token = len(full) / max(1, len(self.chat.encode_plain(full)))
                limit = max(MIN_PART, limit - max(MIN_CUT, round((ids.size - budget) * per_token)))
                parts[name] = shorten_middle(full, limit)
                shown = context.demonstration and replace(context.demonstration, text=parts["demonstration"] or "")
                messages = (*teacher_messages(problem.messages, **parts, cfg=self.teacher), *earlier)
                context = TeacherContext(messages, shown, parts["feedback"])
                ids = self._render(problem, messages)
        return (context, ids) if ids.size <= budget else None

    def _render(self, problem: Problem, messages: tuple[Message, ...]) -> IntArray:
        key = problem.id, tuple((message["role"], message["content"]) for message in messages)
        if key not in self.rendered:
            self.rendered[key] = self.chat.render(messages, tools=problem.tools)
        return self.rendered[key]
