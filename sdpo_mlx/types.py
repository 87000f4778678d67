"""The words of the project, as types; every room speaks them and nothing else.

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
SkipReason = Literal["no_signal", "too_long", "no_tokens", "grader_error"]
Role = Literal["student", "teacher"]


class Message(TypedDict):
    """One turn of a chat; the content is always data, never a template."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Problem:
    """One row of a task: what the model reads, and what only the grader may see."""

    id: str
    messages: tuple[Message, ...]
    private: Mapping[str, Any] = field(default_factory=dict, repr=False)
    family: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()  # JSON schemas for the chat template's own `tools`; data like all content
    reference: str | None = field(default=None, repr=False)  # a right answer; the self-teacher alone may be shown it


@dataclass(frozen=True)
class Feedback:
    """What the environment says about one answer; `text` is untrusted and may be blank."""

    reward: float
    success: bool
    text: str
    kind: FeedbackKind


@dataclass(frozen=True)
class Generation:
    """Sampled tokens as a backend gives them: stop token included, log-probs at sampling time."""

    ids_T: IntArray
    logps_T: FloatArray
    finish: FinishReason


@dataclass(frozen=True)
class Rollout:
    """One sampled answer; `text` is decoded without special tokens.

    In a task of several turns it is the episode's last answer, and `earlier` holds what was said before it.
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
        """Every answer of the episode in order, each with the prompt that it was sampled from."""
        return (*(exchange.answer for exchange in self.earlier), self)

    @property
    def answers(self) -> tuple[str, ...]:
        """The texts of all turns in order."""
        return tuple(turn.text for turn in self.turns)


@dataclass(frozen=True)
class Exchange:
    """One answer of an episode (its own `earlier` is empty), and what the environment replied; cleaned, untrusted."""

    answer: Rollout
    reply: str


@dataclass(frozen=True)
class RolloutGroup:
    """The n rollouts of one problem with their feedback, in sampling order.

    `last_decides` says that an episode's last answer is a solution by itself, whatever was said before it.
    """

    problem: Problem
    rollouts: tuple[Rollout, ...]
    feedback: tuple[Feedback, ...]
    last_decides: bool = True

    def __post_init__(self) -> None:
        if len(self.rollouts) != len(self.feedback):
            raise ValueError("a group needs one feedback a rollout")

    @property
    def pass_rate(self) -> float:
        """Share of successes among the rollouts that could be graded (0 when none could)."""
        graded = [f for f in self.feedback if f.kind != "grader_error"]
        return sum(f.success for f in graded) / len(graded) if graded else 0.0


FROM_DATASET = -1  # the source of a demonstration that is no rollout


@dataclass(frozen=True)
class Demonstration:
    """A right answer, its thinking removed: rollout `source` of the group, or the row's own (`FROM_DATASET`)."""

    text: str
    source: int


@dataclass(frozen=True)
class TeacherContext:
    """The messages that the self-teacher sees instead of the student's, and what went into them."""

    messages: tuple[Message, ...]
    demonstration: Demonstration | None
    feedback: str | None


@dataclass(frozen=True)
class DistillSample:
    """One answer ready to learn from; both spans [start, stop) hold the same response tokens.

    `turn` counts a rollout's answers from 0; what was said before it stands in both prompts.

    `distil_weight` multiplies the divergence to the self-teacher, `policy_weight` the GRPO term
    with `advantage`; a weight of 0 means that this half is neither computed nor counted.
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

    def __post_init__(self) -> None:
        if self.ids_T.size != self.rollout_logps_T.size:
            raise ValueError("one sampling log-prob a response token is needed")
        if self.distil_weight and not np.array_equal(self.ids_T, self.teacher_ids[slice(*self.teacher_span)]):
            raise ValueError("student and teacher spans hold different tokens")

    @property
    def ids_T(self) -> IntArray:
        """The response tokens."""
        return self.student_ids[slice(*self.student_span)]


@dataclass(frozen=True)
class Skip:
    """An answer that teaches nothing, and why."""

    reason: SkipReason
    problem_id: str
    index: int
    turn: int = 0
