"""What a task is: problems, and a grader that says in words what went wrong.

One method is the heart: `grade`. Whatever it raises becomes the feedback kind `grader_error` in
`sampling.py`, never a verdict on the model. A task in which the environment answers and the model goes on
has two things more, `turns` and `reply`; where the last answer alone does not decide, also `grade_turns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from sdpo_mlx.types import Feedback, Problem

Split = Literal["train", "held_out"]


class Task(Protocol):
    """A family of problems with one grader."""

    name: str
    description: str
    feedback_modes: tuple[str, ...]  # the first is the default of `task.feedback`

    def problems(self, split: Split) -> Sequence[Problem]:
        """The rows of one split, always in the same order."""

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Judge one answer (special tokens removed); `truncated` when it ran out of tokens.

        Thread-safe; may raise anything: the caller turns it into `grader_error`.
        """


class TurnTask(Task, Protocol):
    """A task of several turns: an episode is answer, reply, answer, … and its verdict comes at the end.

    Every method is a pure function of the problem and the answers so far: what the environment hides lies in
    `problem.private` and is played again from there, so that nothing has to be kept between two turns.
    """

    turns: int  # the most answers of an episode; `task.max_turns` lowers it

    def reply(self, problem: Problem, answers: Sequence[str]) -> str | None:
        """What the environment says after these answers, or None where the episode is over.

        It is asked only while there are turns left, and may raise anything as `grade` may.
        """

    def grade_turns(self, problem: Problem, answers: Sequence[str], *, truncated: bool = False) -> Feedback:
        """Judge the whole episode; `truncated` when its last answer ran out of tokens.

        May be left out: then `grade` judges the last answer.
        """


def turns_of(task: Task) -> int:
    """The most answers of one episode; 1 for a task without `turns`."""
    return max(1, int(getattr(task, "turns", 1)))
