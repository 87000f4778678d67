"""Measure the embedded model before reinforcement learning, and check that it is good enough to ship.

A self-teacher that cannot use its context has nothing to teach: below 95 % with a context, SDPO stays at its teacher's
level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from episodes import teacher_text
from mlx_lm import load
from mlx_lm.generate import BatchGenerator

from sdpo_mlx.core.seeding import derive
from sdpo_mlx.tasks.tiny.library import solution
from sdpo_mlx.tasks.tiny.task import TinyTask
from sdpo_mlx.types import Problem

SAMPLES = 256
MAX_TOKENS = 64
# measure: (minimum, maximum)
BOUNDS = {
    "alone": (0.08, 0.20),
    "with solution": (0.95, 1.0),
    "with full feedback": (0.95, 1.0),
    "hard alone": (0.0, 0.003),
}


@dataclass(frozen=True)
class Share:
    """Number of successes among samples."""

    successes: int
    samples: int

    @property
    def rate(self) -> float:
        """Success rate."""
        return self.successes / self.samples


class Player:
    """The saved model, asked many questions at once."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.model, self.tokenizer = load(str(folder))
        self.model.set_dtype(mx.float32)  # the weights as shipped, in the arithmetic of a CPU
        mx.random.seed(derive("tiny-gate", seed))

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """One sampled answer a prompt, at temperature 1."""
        chats = [
            self.tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True)
            for p in prompts
        ]
        generator = BatchGenerator(
            self.model,
            max_tokens=MAX_TOKENS,
            stop_tokens=[[token] for token in self.tokenizer.eos_token_ids],
            sampler=mx.random.categorical,
            completion_batch_size=64,
            prefill_batch_size=32,
        )
        rows = dict.fromkeys(generator.insert([list(chat) for chat in chats]))
        tokens: dict[int, list[int]] = {uid: [] for uid in rows}
        while responses := generator.next_generated():
            for response in responses:
                if response.finish_reason != "stop":
                    tokens[response.uid].append(int(response.token))
        generator.close()
        return [self.tokenizer.decode(tokens[uid]) for uid in rows]


def measure(folder: Path, samples: int = SAMPLES) -> dict[str, Share]:
    """Return success rates without and with context, on problems that reinforcement learning never used."""
    player, task = Player(folder), TinyTask()
    problems = _repeat(task.problems("held_out"), samples * 5 // 4)
    attempts = player.answer([_question(p) for p in problems])
    shares = {"alone": _grade(task, problems, attempts)}
    failed = [(p, a) for p, a in zip(problems, attempts, strict=True) if not task.grade(p, a).success][:samples]
    shares["with solution"] = _with_solution(player, task, samples)
    for name, mode in (
        ("with full feedback", "full"),
        ("without suggestion", "no_suggestion"),
        ("first error", "first_error"),
    ):
        shares[name] = _with_feedback(player, TinyTask(feedback=mode), failed)
    mid, hard = TinyTask("mid"), TinyTask("hard")
    shares["mid alone"] = _alone(player, mid, samples * 2)
    shares["hard alone"] = _alone(player, hard, samples * 8)
    shares["hard with solution"] = _with_solution(player, hard, samples // 2)
    lost = _repeat(hard.problems("train"), samples // 2)
    tries = list(zip(lost, player.answer([_question(p) for p in lost]), strict=True))
    shares["hard with full feedback"] = _with_feedback(player, hard, tries)
    return shares


def misses(shares: dict[str, Share]) -> list[str]:
    """Return the bounds that do not hold, one line each."""
    return [
        f"{name}: {shares[name].rate:.4f} is outside {low} to {high}"
        for name, (low, high) in BOUNDS.items()
        if not low <= shares[name].rate <= high
    ]


def _alone(player: Player, task: TinyTask, samples: int) -> Share:
    problems = _repeat(task.problems("held_out"), samples)
    return _grade(task, problems, player.answer([_question(p) for p in problems]))


def _with_solution(player: Player, task: TinyTask, samples: int) -> Share:
    problems = _repeat(task.problems("held_out"), samples)
    prompts = [teacher_text(_question(p), solution(p.private["operations"]), None) for p in problems]
    return _grade(task, problems, player.answer(prompts))


def _with_feedback(player: Player, task: TinyTask, failed: Sequence[tuple[Problem, str]]) -> Share:
    prompts = [teacher_text(_question(p), None, task.grade(p, attempt).text or None) for p, attempt in failed]
    return _grade(task, [p for p, _ in failed], player.answer(prompts))


def _question(problem: Problem) -> str:
    return problem.messages[-1]["content"]


def _repeat(problems: Sequence[Problem], samples: int) -> list[Problem]:
    return [problems[i % len(problems)] for i in range(samples)]


def _grade(task: TinyTask, problems: Sequence[Problem], answers: Sequence[str]) -> Share:
    verdicts = [task.grade(p, a).success for p, a in zip(problems, answers, strict=True)]
    return Share(sum(verdicts), len(verdicts))
