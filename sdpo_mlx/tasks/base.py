"""The contract of a task: problems, and a grader that explains in words what went wrong.

Only `grade` must be written. Whatever a method raises becomes the feedback kind `grader_error` (`grading.py`),
never a grade on the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from sdpo_mlx.types import Feedback, Problem

if TYPE_CHECKING:
    from sdpo_mlx.models.chat_template import Chat
    from sdpo_mlx.models.resolve import ResolvedModel

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


class Task(ABC):
    """A family of problems with one grader.

    In a task of several turns an episode is answer, reply, answer, ... and is graded at its end. All methods are
    thread-safe and pure functions of the problem and the answers so far: hidden state lies in `problem.private`
    and is computed again from there, so that nothing has to be kept between two turns.
    """

    name: str = "task"
    description: str = ""
    feedback_modes: tuple[str, ...] = ("default",)  # the first is the default of `task.feedback`
    max_turns: int = 1  # answers per episode; the setting `task.max_turns` lowers it
    grading_seconds: float = 120.0  # one grade that takes longer hangs; tasks have shorter limits themselves
    fingerprint: str | None = None  # identifies the grader's code, if it is not part of this package
    rows: Sequence[Problem] = ()  # the problems of both splits, each with its split in `private["split"]`

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the problems of one split, always in the same order."""
        return [problem for problem in self.rows if problem.private["split"] == split]

    @abstractmethod
    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Grade one answer (special tokens removed); `truncated` if it ran out of tokens."""

    def reply(self, problem: Problem, answers: Sequence[str]) -> str | None:
        """Return the environment's reply to these answers, None if the episode is over; called while turns are left."""
        return None

    def grade_turns(self, problem: Problem, answers: Sequence[str], *, truncated: bool = False) -> Feedback:
        """Grade a whole episode; `truncated` if its last answer ran out of tokens. The default grades that."""
        return self.grade(problem, answers[-1], truncated=truncated)

    def solution(self, problem: Problem) -> str | None:
        """Return an answer that is known to be right, for `sdpo tasks check`; None if there is none."""
        return None

    def counters(self) -> Mapping[str, float]:
        """Return running totals for the event log, such as requests and their cost."""
        return {}

    def start(self, model: ResolvedModel) -> None:
        """Prepare to grade; called once before sampling with the base model of the run."""

    def warnings(self, _chat: Chat) -> tuple[str, ...]:
        """Return what to warn of with this chat template before a run starts, one line each."""
        return ()

    def notes(self, _problem: Problem) -> tuple[str, ...]:
        """Return what `sdpo tasks show` says of how a problem is graded, one line each."""
        return ()

    def close(self) -> None:
        """Release what `start` opened; safe to call twice."""

    @property
    def needs_model(self) -> bool:
        """Whether grading needs the base model, which `start` gets."""
        return False

    @property
    def replies(self) -> bool:
        """Whether this is a task of several turns."""
        return type(self).reply is not Task.reply

    @property
    def grades_episodes(self) -> bool:
        """Whether all answers of an episode count; otherwise its last answer is a solution by itself."""
        return type(self).grade_turns is not Task.grade_turns
