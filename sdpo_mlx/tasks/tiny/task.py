"""The embedded task: compose list operations of a library whose function names must be learned.

A model cannot infer which of four plausible names exists; only the environment reveals it.
That makes the task small, offline, and one on which feedback really teaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.seeding import rng
from sdpo_mlx.tasks.base import Split, Task
from sdpo_mlx.tasks.tiny.library import FEEDBACK_MODES, LIBRARY, OPERATIONS, apply, cut_off, judge, prior, solution
from sdpo_mlx.types import Feedback, Problem

Operations = tuple[str, ...]
Inputs = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Variant:
    """How many problems of each length a variant has, and how likely an untrained model solves them."""

    train: tuple[tuple[int, int], ...]  # (operations, problems)
    held_out: tuple[tuple[int, int], ...]  # empty: the same problems as train
    chance: tuple[float, float]
    description: str


_VARIANTS = {
    "": _Variant(((2, 72), (3, 48)), ((2, 44), (3, 20)), (0.0, 1.0), "two or three operations"),
    "mid": _Variant(((4, 60), (5, 60)), ((4, 20), (5, 20)), (0.003, 0.04), "four or five operations"),
    "hard": _Variant(((5, 12), (6, 12)), (), (0.0002, 0.002), "five or six operations, for test-time training"),
}


class TinyTask(Task):
    """Write a function as a chain of operations from a library with hidden names."""

    feedback_modes = FEEDBACK_MODES

    def __init__(self, variant: str = "", feedback: str | None = None) -> None:
        """`variant` is empty, `mid` or `hard`; `feedback` one of `feedback_modes`, None for the first.

        Raises:
            ConfigError: an unknown variant or mode.
        """
        if variant not in _VARIANTS:
            choices = ", ".join(f"tiny:{name}" if name else "tiny" for name in _VARIANTS)
            raise ConfigError(f"no variant {variant!r} of task tiny", where="task.name", fix=f"choose one of {choices}")
        if feedback is not None and feedback not in FEEDBACK_MODES:
            choices = ", ".join(FEEDBACK_MODES)
            raise ConfigError(
                f"task tiny has no feedback mode {feedback!r}", where="task.feedback", fix=f"choose one of {choices}"
            )
        self.name = f"tiny:{variant}" if variant else "tiny"
        self.description = f"chains of {_VARIANTS[variant].description} from a library whose names must be learnt"
        self.feedback = feedback or FEEDBACK_MODES[0]
        self._splits = _problems(variant)

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the rows of one split; `tiny:hard` has the same 24 in both, since each is trained on by itself."""
        return self._splits[split]

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Interpret the answer by table look-up; nothing is executed. Reward 1 or 0."""
        if truncated:
            return cut_off(self.feedback)
        private = problem.private
        return judge(private["operations"], private["inputs"], text, library=LIBRARY, mode=self.feedback)


def question(operations: Sequence[str]) -> str:
    """Return what the model reads."""
    return f"Write f(x): {', '.join(operations)}"


def draw_inputs(generator: np.random.Generator) -> Inputs:
    """Three lists of five to seven small integers, the last one a repetition."""
    lists = [[int(v) for v in generator.integers(-9, 10, size=int(n))] for n in generator.integers(4, 7, size=3)]
    return tuple((*numbers, numbers[int(generator.integers(len(numbers)))]) for numbers in lists)


@cache
def _problems(variant: str) -> Mapping[Split, tuple[Problem, ...]]:
    """Return both splits of a variant: always the same, and drawn once."""
    plan = _VARIANTS[variant]
    train: list[Problem] = []
    held_out: list[Problem] = []
    sizes = dict(plan.held_out)
    for length, count in plan.train:
        rows = list(islice(_draw(variant, length, plan.chance), count + sizes.get(length, 0)))
        train += rows[:count]
        held_out += rows[count:]
    return {"train": _shuffled(train, variant), "held_out": _shuffled(held_out or train, variant)}


def _shuffled(problems: Sequence[Problem], variant: str) -> tuple[Problem, ...]:
    """Lengths mixed, so that every batch has some of each."""
    return tuple(problems[int(i)] for i in rng("tiny-order", variant).permutation(len(problems)))


def _draw(variant: str, length: int, chance: tuple[float, float]) -> Iterator[Problem]:
    """Yield different problems without end, as long as there are any."""
    generator = rng("tiny-problems", variant, length)
    seen: set[Operations] = set()
    modules = tuple(OPERATIONS)
    while True:
        operations = tuple(modules[int(i)] for i in generator.permutation(len(modules))[:length])
        inputs = draw_inputs(generator)
        if operations in seen or not chance[0] <= prior(operations) <= chance[1] or not _tells(operations, inputs):
            continue
        seen.add(operations)
        yield _problem(operations, inputs)


def _tells(operations: Operations, inputs: Inputs) -> bool:
    """Return whether the inputs detect any one missing operation."""
    whole = [apply(operations, numbers) for numbers in inputs]
    shorter = (operations[:i] + operations[i + 1 :] for i in range(len(operations)))
    return all(any(apply(part, n) != out for n, out in zip(inputs, whole, strict=True)) for part in shorter)


def _problem(operations: Operations, inputs: Inputs) -> Problem:
    return Problem(
        id="tiny-" + "-".join(operations),
        messages=({"role": "user", "content": question(operations)},),
        private={"operations": operations, "inputs": inputs},
        family=f"{len(operations)} operations",
        reference=solution(operations),
    )
