"""Held-out scores with intervals: avg@n, pass@1, pass@k over problems, always on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_mlx import intervals
from sdpo_mlx.backends.base import CONCURRENCY, Policy, SamplingParams
from sdpo_mlx.chat import Chat
from sdpo_mlx.config import EvalConfig, RolloutConfig
from sdpo_mlx.sampling import Sampled, rollout_seeds, sample
from sdpo_mlx.seeding import derive
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.types import Problem


@dataclass(frozen=True)
class Exam:
    """What is asked and how: `samples` answers a problem; seed and purpose fix every draw."""

    problems: Sequence[Problem]
    sampling: SamplingParams
    samples: int
    seed: int
    purpose: str = "eval"


@dataclass(frozen=True)
class ProblemScore:
    """One problem's answers: rewards and successes in the order of their seeds."""

    id: str
    family: str
    rewards: tuple[float, ...]
    successes: tuple[bool, ...]


@dataclass(frozen=True)
class Evaluation:
    """All scores; `score` is the mean reward a problem, its interval a bootstrap over problems."""

    split: str
    samples: int
    problems: tuple[ProblemScore, ...]
    seed: int

    @property
    def score(self) -> float:
        """avg@n of the reward."""
        return intervals.average([p.rewards for p in self.problems])

    @property
    def interval(self) -> intervals.Interval:
        """The 95 % interval of `score`, clustered by problem."""
        return intervals.clustered([p.rewards for p in self.problems], seed=derive("bootstrap", self.seed))

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k, averaged over the problems that have k answers."""
        values = [
            intervals.pass_at_k(len(p.successes), sum(p.successes), k) for p in self.problems if len(p.successes) >= k
        ]
        return sum(values) / len(values) if values else float("nan")

    def event(self) -> dict[str, Any]:
        """The flat names of an `eval` event (CLI.md)."""
        low, high = self.interval
        n = self.samples
        ks = sorted({1, n})
        return {
            "split": self.split,
            "score": self.score,
            **{f"pass@{k}": self.pass_at(k) for k in ks},
            f"avg@{n}": self.score,
            "n": len(self.problems),
            "low": low,
            "high": high,
        }


def held_out(task: Task, cfg: EvalConfig) -> Sequence[Problem]:
    """The problems that evaluation uses."""
    problems = task.problems("held_out")
    return problems[: cfg.problems] if cfg.problems is not None else problems


def sampling_params(cfg: EvalConfig, rollout: RolloutConfig, chat: Chat) -> SamplingParams:
    """How evaluation samples."""
    return SamplingParams(
        max_tokens=cfg.max_tokens if cfg.max_tokens is not None else rollout.max_tokens,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        eos_ids=chat.eos_ids,
        concurrency=rollout.concurrency or CONCURRENCY,
    )


def evaluate(
    policy: Policy, task: Task, chat: Chat, exam: Exam, interrupted: Callable[[], bool] = lambda: False
) -> Evaluation:
    """Sample and grade every problem of the exam; equal weights and seeds give equal answers.

    A prompt that does not fit and an answer that could not be graded count as failures.
    """
    seeds = rollout_seeds(exam.purpose, exam.seed, 0, exam.problems, exam.samples)
    sampled = sample(policy, task, chat, exam.problems, exam.sampling, seeds, interrupted)
    return Evaluation("held_out", exam.samples, _scores(sampled, exam.problems, exam.samples), exam.seed)


def _scores(sampled: Sampled, problems: Sequence[Problem], samples: int) -> tuple[ProblemScore, ...]:
    groups = {group.problem.id: group for group in sampled.groups}
    scores = []
    for problem in problems:
        group = groups.get(problem.id)
        rewards = tuple(f.reward for f in group.feedback) if group else (0.0,) * samples
        successes = tuple(f.success for f in group.feedback) if group else (False,) * samples
        scores.append(ProblemScore(problem.id, problem.family, rewards, successes))
    return tuple(scores)
