"""Pretraining data of the embedded model: the task, each time with a new random library.

No name is right in all episodes. Without a context the model can only learn the prior of the names; with a context it
must use the context. The contexts have the format of the trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sdpo_mlx.config import TeacherConfig
from sdpo_mlx.core.seeding import rng
from sdpo_mlx.tasks.tiny.library import OPERATIONS, PRIOR, judge, solution
from sdpo_mlx.tasks.tiny.task import draw_inputs, question
from sdpo_mlx.teacher import teacher_messages
from sdpo_mlx.types import Feedback

MODULES = tuple(OPERATIONS)
# kind of episode: share
MIXTURE = {"plain": 0.20, "solution": 0.25, "feedback": 0.47, "both": 0.05, "wrong": 0.03}
FEEDBACK_SHARES = {"full": 0.55, "no_suggestion": 0.33, "first_error": 0.12}
UNIFORM_LIBRARY = 0.5  # share of context episodes whose library ignores the prior
NOISE = 0.15  # share of answer lines with a random name, its loss masked: the teacher reads the student's tokens


def teacher_text(problem: str, demonstration: str | None, feedback: str | None) -> str:
    """Return the question as the self-teacher sees it; unchanged without a context."""
    if not demonstration and not feedback:
        return problem
    messages = teacher_messages(({"role": "user", "content": problem},), demonstration, feedback, None, TeacherConfig())
    return messages[-1]["content"]


@dataclass(frozen=True)
class Episode:
    """One chat: prompt, answer, and character ranges of the answer without loss."""

    prompt: str
    answer: str
    masked: tuple[tuple[int, int], ...]


def draw_episode(generator: np.random.Generator) -> Episode:
    """Return one episode of the mixture."""
    kind = _pick(generator, MIXTURE)
    operations = _operations(generator)
    uniform = kind != "plain" and generator.random() < UNIFORM_LIBRARY
    library = _draw_names(generator, MODULES, uniform)
    demonstration = solution(operations, library) if kind in {"solution", "both"} else None
    feedback = None
    if kind in {"feedback", "both", "wrong"}:
        feedback = _feedback(generator, kind, operations, library)
    prompt = teacher_text(question(operations), demonstration, feedback)
    noise = 0.0 if kind == "plain" else NOISE
    return Episode(prompt, *_noisy(generator, operations, library, noise))


def corpus(episodes: int = 6000) -> Iterator[str]:
    """Yield texts to train the tokenizer on."""
    generator = rng("tiny-corpus")
    for _ in range(episodes):
        episode = draw_episode(generator)
        yield f"user\n{episode.prompt}\nassistant\n{episode.answer}\nsystem\n"


def _pick(generator: np.random.Generator, shares: dict[str, float]) -> str:
    names = list(shares)
    return names[int(generator.choice(len(names), p=[shares[name] for name in names]))]


def _operations(generator: np.random.Generator) -> list[str]:
    length = int(generator.choice([1, 2, 3, 4, 5, 6], p=[0.05, 0.23, 0.24, 0.17, 0.16, 0.15]))
    return [MODULES[i] for i in generator.permutation(len(MODULES))[:length]]


def _draw_names(generator: np.random.Generator, modules: tuple[str, ...] | list[str], uniform: bool) -> dict[str, str]:
    chances = None if uniform else PRIOR
    picks = generator.choice(4, size=len(modules), p=chances)
    return {module: OPERATIONS[module].names[int(i)] for module, i in zip(modules, picks, strict=True)}


def _feedback(generator: np.random.Generator, kind: str, operations: list[str], library: dict[str, str]) -> str:
    """Return the feedback on a failed attempt of a student that already knows part of the library."""
    mode = _pick(generator, FEEDBACK_SHARES)
    inputs = draw_inputs(generator)
    known = float(generator.choice([0.0, 0.4, 0.8]))
    for _ in range(16):
        attempt = _attempt(generator, kind, operations, library, known)
        verdict: Feedback = judge(operations, inputs, attempt, library=library, mode=mode)
        if not verdict.success:
            return verdict.text
    module = operations[0]
    wrong = {**library, module: next(n for n in OPERATIONS[module].names if n != library[module])}
    return judge(operations, inputs, solution(operations, wrong), library=library, mode=mode).text


def _attempt(
    generator: np.random.Generator, kind: str, operations: list[str], library: dict[str, str], known: float
) -> str:
    if kind == "wrong":
        return solution(_mangled(generator, operations), library)
    names = _draw_names(generator, operations, uniform=False)
    names = {module: library[module] if generator.random() < known else name for module, name in names.items()}
    lines = operations if generator.random() < 0.96 else _mangled(generator, operations)
    return solution(lines, {**library, **names})


def _mangled(generator: np.random.Generator, operations: list[str]) -> list[str]:
    """Return the chain with one operation missing, one too many, or two swapped."""
    lines, at = list(operations), int(generator.integers(len(operations)))
    way = int(generator.integers(3))
    if way == 0 and len(lines) > 1:
        del lines[at]
    elif way == 1 and len(lines) > 1:
        lines[at - 1], lines[at] = lines[at], lines[at - 1]
    else:
        lines.insert(at, MODULES[int(generator.integers(len(MODULES)))])
    return lines


def _noisy(
    generator: np.random.Generator, operations: list[str], library: dict[str, str], noise: float
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return the answer with some names replaced at random, and their ranges."""
    lines, masked, start = [], [], 0
    for module in operations:
        name = library[module]
        if generator.random() < noise:
            name = OPERATIONS[module].names[int(generator.integers(4))]
            at = start + len(f"x = {module}")
            masked.append((at, at + len(name) + 1))
        lines.append(f"x = {module}.{name}(x)")
        start += len(lines[-1]) + 1
    return "\n".join(lines), tuple(masked)
