"""Types that all packages share.

Array suffixes: _B batch, _T token, _V vocabulary, _K top-k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
FinishReason = Literal["stop", "length"]
FeedbackKind = Literal["pass", "wrong", "error", "timeout", "invalid", "grader_error"]
SkipReason = Literal["no_signal", "all_correct", "too_long", "no_tokens", "grader_error"]
Role = Literal["student", "teacher"]


class Message(TypedDict):
    """One message of a chat; the content is always data, never a template."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Problem:
    """One row of a task: the messages for the model, and private fields for the grader."""

    id: str
    messages: tuple[Message, ...]
    private: Mapping[str, Any] = field(default_factory=dict, repr=False)
    family: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()  # JSON schemas for the chat template's `tools`; data like all content
    reference: str | None = field(default=None, repr=False)  # a correct answer; only the self-teacher may see it


@dataclass(frozen=True)
class Feedback:
    """The grade of one rollout; `text` is untrusted and may be blank."""

    reward: float
    success: bool
    text: str
    kind: FeedbackKind


@dataclass(frozen=True)
class Generation:
    """Tokens sampled by a backend: stop token included, log-probs at sampling time."""

    ids_T: IntArray
    logps_T: FloatArray
    finish: FinishReason


@dataclass(frozen=True)
class Rollout:
    """One sampled answer; `text` is decoded without special tokens.

    In a task of several turns it is the last turn of the episode, and `earlier` holds the turns before it.
    """

    prompt_ids: IntArray
    ids_T: IntArray
    logps_T: FloatArray
    finish: FinishReason
    seed: int
    text: str
    earlier: tuple[Exchange, ...] = ()

    @property
    def turns(self) -> tuple[Rollout, ...]:
        """Every turn of the episode in order, each with the prompt that it was sampled from."""
        return (*(exchange.answer for exchange in self.earlier), self)

    @property
    def answers(self) -> tuple[str, ...]:
        """The texts of all turns in order."""
        return tuple(turn.text for turn in self.turns)


@dataclass(frozen=True)
class Exchange:
    """One turn of an episode (its `earlier` is empty), and the environment's reply: cleaned, untrusted."""

    answer: Rollout
    reply: str


@dataclass(frozen=True)
class RolloutGroup:
    """The n rollouts of one problem with their feedback, in sampling order.

    `last_decides`: the last turn of an episode is a solution by itself, independent of the turns before it.
    """

    problem: Problem
    rollouts: tuple[Rollout, ...]
    feedback: tuple[Feedback, ...]
    last_decides: bool = True

    def __post_init__(self) -> None:
        if len(self.rollouts) != len(self.feedback):
            raise ValueError("a group needs one feedback per rollout")

    @property
    def pass_rate(self) -> float:
        """Share of successes among the rollouts that could be graded (0 if none could)."""
        graded = [f for f in self.feedback if f.kind != "grader_error"]
        return sum(f.success for f in graded) / len(graded) if graded else 0.0


FROM_DATASET = -1  # source of a demonstration that is not a rollout


@dataclass(frozen=True)
class Demonstration:
    """A correct answer, thinking removed: rollout `source` of the group, or the row's reference (`FROM_DATASET`)."""

    text: str
    source: int


@dataclass(frozen=True)
class TeacherContext:
    """The messages of the self-teacher in place of the student's, and the parts that they were made of."""

    messages: tuple[Message, ...]
    demonstration: Demonstration | None
    feedback: str | None


@dataclass(frozen=True)
class DistillSample:
    """One rollout ready to learn from; both spans [start, stop) hold the same response tokens.

    `turn` counts the turns of an episode from 0; earlier turns are in both prompts.

    `distil_weight` multiplies the divergence to the self-teacher, `policy_weight` the GRPO term
    with `advantage`; a term with weight 0 is neither computed nor counted.
    `token_weights_T` multiply both terms of each token; None stands for 1.
    A sample without a context has an empty `teacher_ids` and `distil_weight` 0.
    """

    problem_id: str
    index: int
    student_ids: IntArray
    student_span: tuple[int, int]
    teacher_ids: IntArray
    teacher_span: tuple[int, int]
    rollout_logps_T: FloatArray
    distil_weight: float = 1.0
    policy_weight: float = 0.0
    advantage: float = 0.0
    turn: int = 0
    token_weights_T: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.ids_T.size != self.rollout_logps_T.size:
            raise ValueError("one sampling log-prob per response token is needed")
        if self.distil_weight and not np.array_equal(self.ids_T, self.teacher_ids[slice(*self.teacher_span)]):
            raise ValueError("student and teacher spans hold different tokens")

    @property
    def ids_T(self) -> IntArray:
        """The response tokens."""
        return self.student_ids[slice(*self.student_span)]

    @property
    def weights_T(self) -> FloatArray:
        """The factor of each response token."""
        return np.ones(self.ids_T.size, np.float32) if self.token_weights_T is None else self.token_weights_T


@dataclass(frozen=True)
class Skip:
    """A rollout that is not learned from, and the reason."""

    reason: SkipReason
    problem_id: str
    index: int
    turn: int = 0
