"""Held-out scores with intervals: avg@n, pass@1, pass@k over problems, always on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.backends.base import CONCURRENCY, Policy, SamplingParams
from sdpo_mlx.config import EvalConfig, RolloutConfig
from sdpo_mlx.core import statistics
from sdpo_mlx.core.progress import ProgressCallback, no_progress
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.evaluation.cache import CachedRollout, RolloutCache, problem_key, problem_sha256
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.rl.rollouts import ProgressPolicy, rollout_seeds, sample
from sdpo_mlx.tasks.base import Task, turns_of
from sdpo_mlx.types import Problem

FILLED = 2  # times what is written at once: how much is sampled between two writes of a store
SampleKey = tuple[int, int]  # which problem of the exam, which answer of it


@dataclass(frozen=True)
class EvalSpec:
    """What is asked and how: `samples` answers a problem; seed and purpose fix every draw."""

    problems: Sequence[Problem]
    sampling: SamplingParams
    samples: int
    seed: int
    purpose: str = "eval"


@dataclass(frozen=True)
class ProblemScore:
    """One problem's answers: rewards and successes in the order of their seeds.

    `answers` are empty where the prompt did not fit; `sha256` tells problems of the same id apart.
    """

    id: str
    family: str
    rewards: tuple[float, ...]
    successes: tuple[bool, ...]
    answers: tuple[CachedRollout, ...] = ()
    sha256: str = ""


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
        return statistics.average([p.rewards for p in self.problems])

    @property
    def interval(self) -> statistics.Interval:
        """The 95 % interval of `score`, clustered by problem."""
        return statistics.clustered([p.rewards for p in self.problems], seed=derive("bootstrap", self.seed))

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k, averaged over the problems that have k answers."""
        values = [
            statistics.pass_at_k(len(p.successes), sum(p.successes), k) for p in self.problems if len(p.successes) >= k
        ]
        return sum(values) / len(values) if values else float("nan")

    def families(self) -> dict[str, Evaluation]:
        """The same for the problems of each family, in the order in which they come."""
        names = dict.fromkeys(problem.family for problem in self.problems)
        parts = {name: tuple(p for p in self.problems if p.family == name) for name in names}
        return {name: Evaluation(self.split, self.samples, part, self.seed) for name, part in parts.items()}

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
    policy: Policy,
    task: Task,
    chat: Chat,
    exam: EvalSpec,
    interrupted: Callable[[], bool] = lambda: False,
    store: RolloutCache | None = None,
    tell: ProgressCallback = no_progress,
) -> Evaluation:
    """Sample and grade every problem of the exam; equal weights and seeds give equal answers.

    A prompt that does not fit and an answer that could not be graded count as failures. What `store` holds is not
    sampled again; with it, problems are taken some at a time, each part kept before the next. Tells how many answers
    there are: first what the store held, then each as it comes, then each part that was kept.
    """
    sitting = _EvalRun(policy, task, chat, exam, store)
    missing, total = sitting.missing(), len(exam.problems) * exam.samples
    part_size = total if store is None else max(1, FILLED * exam.sampling.concurrency)
    done = total - len(missing)
    tell(done, total)
    for part in _parts(missing, part_size):
        sitting.sample(part, interrupted, lambda n, done=done: tell(done + n, total))  # type: ignore[misc]
        done += len(part)
        tell(done, total)
    return Evaluation("held_out", exam.samples, sitting.scores(), exam.seed)


class _EvalRun:
    """One exam while it is taken: what was asked, and the answers so far by their place."""

    def __init__(self, policy: Policy, task: Task, chat: Chat, exam: EvalSpec, store: RolloutCache | None) -> None:
        self.policy, self.task, self.chat, self.exam, self.store = policy, task, chat, exam, store
        self.seeds = rollout_seeds(exam.purpose, exam.seed, 0, exam.problems, exam.samples)
        kept = exam.problems if store is not None else ()
        self.keys = [problem_key(problem, chat.render(problem.messages, tools=problem.tools)) for problem in kept]
        self.answers: dict[SampleKey, CachedRollout] = {}

    def missing(self) -> list[SampleKey]:
        """The places whose answers the store does not hold; what it holds is taken in."""
        places = [(at, n) for at in range(len(self.exam.problems)) for n in range(self.exam.samples)]
        if self.store is not None:
            found = {(at, n): self.store.find(self.keys[at], self.seeds[at][n]) for at, n in places}
            self.answers |= {place: answer for place, answer in found.items() if answer is not None}
        return [place for place in places if place not in self.answers]

    def sample(self, part: Sequence[SampleKey], interrupted: Callable[[], bool], heard: Callable[[int], None]) -> None:
        """Answer some places, and keep what came of them."""
        single = turns_of(self.task) == 1

        def tell(done: int, open_: int) -> None:
            # Of several turns only those that are not asked any more are done.
            heard(len(part) - open_ + (done if single else 0))

        asked: dict[int, list[int]] = {}
        for at, n in part:
            asked.setdefault(at, []).append(n)
        problems = [self.exam.problems[at] for at in asked]
        rows = [[self.seeds[at][n] for n in row] for at, row in asked.items()]
        writer = ProgressPolicy(self.policy, lambda: tell)
        sampled = sample(writer, self.task, self.chat, problems, self.exam.sampling, rows, interrupted)
        groups = {group.problem.id: group for group in sampled.groups}
        fresh: dict[SampleKey, CachedRollout] = {}
        for at, row in asked.items():
            if group := groups.get(self.exam.problems[at].id):
                pairs = zip(group.rollouts, group.feedback, strict=True)
                fresh |= {(at, n): CachedRollout.of(*pair) for n, pair in zip(row, pairs, strict=True)}
        if self.store is not None:
            self.store.add((self.keys[at], self.exam.problems[at].id, answer) for (at, _), answer in fresh.items())
        self.answers |= fresh

    def scores(self) -> tuple[ProblemScore, ...]:
        """Every problem's, in their order."""
        return tuple(self._score(problem, at) for at, problem in enumerate(self.exam.problems))

    def _score(self, problem: Problem, at: int) -> ProblemScore:
        samples = self.exam.samples
        given = tuple(self.answers[at, n] for n in range(samples) if (at, n) in self.answers)
        rewards = tuple(answer.reward for answer in given) or (0.0,) * samples
        successes = tuple(answer.success for answer in given) or (False,) * samples
        return ProblemScore(problem.id, problem.family, rewards, successes, given, problem_sha256(problem))


def _parts(places: Sequence[SampleKey], size: int) -> Iterator[list[SampleKey]]:
    """So many answers at a time, a problem's answers always together."""
    part: list[SampleKey] = []
    for place in places:
        if len(part) >= size and place[0] != part[-1][0]:
            yield part
            part = []
        part.append(place)
    if part:
        yield part
