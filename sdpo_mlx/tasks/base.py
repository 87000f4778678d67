"""What a task is: problems, and a grader that says in words what went wrong.

One method is the heart: `grade`. Whatever it raises becomes the feedback kind `grader_error` in
`sampling.py`, never a verdict on the model.
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
