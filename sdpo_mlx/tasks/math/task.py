"""Mathematical problems with one final answer, compared as a value and not as a text."""

from __future__ import annotations

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.dataset import feedback_mode, load_problems
from sdpo_mlx.tasks.math.extract import LONGEST_ANSWER, find_answer
from sdpo_mlx.tasks.math.feedback import FEEDBACK_MODES, no_answer_text, right_answer_text, wrong_text
from sdpo_mlx.tasks.math.formats import LEVELS, problem_from_row
from sdpo_mlx.tasks.math.pool import Compared, shared
from sdpo_mlx.types import Feedback, FeedbackKind, Problem


class MathTask(Task):
    """Find the one right value; every equal form counts."""

    name = "math"
    description = "problems with one final answer, compared by value"
    feedback_modes = FEEDBACK_MODES

    def __init__(self, cfg: TaskConfig | None = None, variant: str = "") -> None:
        """`cfg.data`: rows as in `formats.py`, None for the shipped problems; `variant`: problems up to a level.

        Raises ConfigError for an unknown mode or level, or when no problem has that level; DataError for bad rows.
        """
        cfg = cfg or TaskConfig(name=self.name)
        if variant and variant not in LEVELS:
            raise ConfigError(f"math has no level {variant!r}", where="task.name", fix=f"choose {', '.join(LEVELS)}")
        self.feedback = feedback_mode(self.name, cfg.feedback, FEEDBACK_MODES)
        problems = load_problems(cfg, "math/problems.jsonl", problem_from_row)
        levels = LEVELS[: LEVELS.index(variant) + 1] if variant else None
        self.rows = [p for p in problems if levels is None or p.private["level"] in levels]
        if not self.rows:
            fix = "choose another level, or rows that say their level"
            raise ConfigError(f"no problem is of the level {variant}", where="task.name", fix=fix)

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Return reward 1 when the final answer equals the right one, else 0 with the reason in words."""
        found = find_answer(text)
        if found is None:
            return self._failed("invalid", no_answer_text(truncated), problem)
        compared = _compared(problem.private["answer"], found.text)
        if compared.equal:
            return Feedback(1.0, True, "", "pass")
        return self._failed("wrong", wrong_text(found, compared.form, truncated), problem)

    def _failed(self, kind: FeedbackKind, text: str, problem: Problem) -> Feedback:
        if self.feedback == "none":
            text = ""
        elif self.feedback == "answer":
            text = f"{text} {right_answer_text(problem.private['answer'])}"
        return Feedback(0.0, False, text, kind)


def _compared(right: str, given: str) -> Compared:
    if len(given) > LONGEST_ANSWER:
        return Compared(False, "It is too long.")
    return Compared(True) if given == right else shared().compare(right, given)
