"""A game for the embedded model: the library has other names in every problem, and only a reply reveals them.

The first answer can only guess; the reply names the functions that exist, in the words that
the embedded model knows from its teacher's prompts, and the second answer has to take them up. So nothing can be
learned by heart, and what carries over to held-out problems is reading the reply.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdpo_mlx.config import TaskConfig, TeacherConfig
from sdpo_mlx.core.seeding import rng
from sdpo_mlx.tasks.base import Split, Task
from sdpo_mlx.tasks.dataset import feedback_mode
from sdpo_mlx.tasks.tiny.library import FEEDBACK_MODES, OPERATIONS, cut_off, judge
from sdpo_mlx.tasks.tiny.task import draw_inputs, question
from sdpo_mlx.teacher import teacher_messages
from sdpo_mlx.types import Feedback, Problem

TURNS = 2
SIZES: tuple[tuple[Split, int], ...] = (("train", 120), ("held_out", 64))
LENGTHS = (2, 3)


class LibraryGame(Task):
    """Write a chain of operations, read in the reply which names exist, and correct it."""

    name = "game:library"
    description = "list programs in a library that hides other names in every problem; the reply tells them"
    feedback_modes = FEEDBACK_MODES

    def __init__(self, cfg: TaskConfig) -> None:
        """Raises ConfigError for an unknown feedback mode."""
        self.feedback = feedback_mode("game:library", cfg.feedback, FEEDBACK_MODES)
        self.max_turns = min(TURNS, cfg.max_turns or TURNS)
        self._splits = _problems()

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the rows of one split; no chain of operations stands in both."""
        return self._splits[split]

    def reply(self, problem: Problem, answers: Sequence[str]) -> str | None:
        """Return what is wrong with the latest answer, or None if nothing is."""
        verdict = self.grade(problem, answers[-1])
        if verdict.success:
            return None
        return teacher_messages(problem.messages, None, verdict.text or None, None, TeacherConfig())[-1]["content"]

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Grade the last answer by table look-up; nothing is executed. Reward 1 or 0."""
        if truncated:
            return cut_off(self.feedback)
        hidden = problem.private
        return judge(hidden["operations"], hidden["inputs"], text, library=hidden["library"], mode=self.feedback)


def _problems() -> dict[Split, tuple[Problem, ...]]:
    """Return both splits: a pure function of nothing."""
    generator, modules = rng("game-library"), tuple(OPERATIONS)
    drawn: dict[tuple[str, ...], Problem] = {}
    while len(drawn) < sum(size for _, size in SIZES):
        operations = tuple(modules[int(i)] for i in generator.permutation(len(modules))[: generator.choice(LENGTHS)])
        names = {module: OPERATIONS[module].names[int(generator.integers(4))] for module in modules}
        private = {"operations": operations, "library": names, "inputs": draw_inputs(generator)}
        message = question(operations)
        drawn[operations] = Problem(
            id="library-" + "-".join(operations),
            messages=({"role": "user", "content": message},),
            private=private,
            family=f"{len(operations)} operations",
        )
    rows = list(drawn.values())
    return {"train": tuple(rows[: SIZES[0][1]]), "held_out": tuple(rows[SIZES[0][1] :])}
