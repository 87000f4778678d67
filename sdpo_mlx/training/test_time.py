"""Test-time SDPO: one problem, attempt after attempt, until one succeeds or the budget ends (SDPO.md, section 7).

Three ways to spend the same attempts: `sdpo` learns from the feedback between two batches, `best-of-k` samples the
untouched model, `multi-turn` holds one conversation with everything that the environment said. Nothing succeeds
before the end, so the self-teacher's contexts are feedback alone; where the environment says nothing, SDPO has
nothing to learn from and its attempts are best-of-k's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from sdpo_mlx.backends.base import CONCURRENCY, SamplingParams, Update
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.core.progress import ProgressCallback, no_progress
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.rl.components import Components
from sdpo_mlx.rl.distillation import distillation_batch
from sdpo_mlx.rl.optimization import learn
from sdpo_mlx.rl.rollouts import ProgressPolicy, rollout_seeds, sample
from sdpo_mlx.teacher import CLOSING_LINE, history
from sdpo_mlx.types import Exchange, Feedback, Message, Problem, Rollout, RolloutGroup

Method = Literal["sdpo", "best-of-k", "multi-turn"]
METHODS: tuple[Method, ...] = ("sdpo", "best-of-k", "multi-turn")
WRONG = "This is not right."  # what a conversation goes on with where the environment has no words


@dataclass(frozen=True)
class Budget:
    """How long to search: attempts, and seconds where they are limited; whichever ends first."""

    attempts: int
    seconds: float | None = None


@dataclass(frozen=True)
class Attempt:
    """One answer with its verdict; `number` counts from 1 in the order of sampling."""

    number: int
    rollout: Rollout
    feedback: Feedback


@dataclass(frozen=True)
class Tried:
    """One batch of attempts, and the update that was made before it (None: nothing was learned)."""

    attempts: tuple[Attempt, ...]
    update: Update | None


@dataclass(frozen=True)
class Search:
    """How a search ended: `solved` is the number of the first success, `attempts` how many were sampled."""

    solved: int | None
    best: Attempt
    attempts: int
    seconds: float


class Searcher(Protocol):
    """A way to choose the next attempts."""

    def ask(self, step: int, size: int, tell: ProgressCallback = no_progress) -> RolloutGroup:
        """At most `size` further answers, told as they come."""

    @property
    def update(self) -> Update | None:
        """What was learned since the answers before."""


def solve(
    setup: Components,
    problem: Problem,
    method: Method,
    budget: Budget,
    observe: Callable[[Tried], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
    tell: ProgressCallback = no_progress,
) -> Search:
    """Try until the first success or the end of the budget; the policy stays as it is by then.

    With a success the student holds the weights that wrote it. Everything follows from `train.seed`, the problem and
    the method. Tells attempts of the budget. Raises KeyboardInterrupt when `interrupted()` turns true, DataError where
    the prompt leaves no room.
    """
    searcher, begun, best, count, step = searcher_of(setup, problem, method, interrupted), time.monotonic(), None, 0, 0
    while count < budget.attempts and (count == 0 or not _over(budget, begun)):
        size = min(setup.cfg.rollout.group_size, budget.attempts - count)
        group = searcher.ask(step, size, _after(count, budget.attempts, tell))
        answers = zip(group.rollouts, group.feedback, strict=True)
        attempts = tuple(Attempt(count + n, *answer) for n, answer in enumerate(answers, 1))
        observe(Tried(attempts, searcher.update))
        count, step = count + len(attempts), step + 1
        best = max((best, *attempts) if best else attempts, key=lambda each: (each.feedback.success, _reward(each)))
        if best.feedback.success:
            break
    if best is None:
        raise ValueError("a budget has at least one attempt")
    return Search(best.number if best.feedback.success else None, best, count, time.monotonic() - begun)


def _after(count: int, total: int, tell: ProgressCallback) -> ProgressCallback:
    """Tells attempts of the whole budget from inside a batch."""
    return lambda done, _: tell(count + done, total)


def searcher_of(setup: Components, problem: Problem, method: Method, interrupted: Callable[[], bool]) -> Searcher:
    """The searcher of a method's name; raises ConfigError for another name."""
    kinds: dict[str, type[_Resampling]] = {
        "sdpo": _SelfDistillation,
        "best-of-k": _Resampling,
        "multi-turn": _Conversation,
    }
    if method not in kinds:
        raise ConfigError(f"there is no method {method!r}", where="--method", fix=f"choose one of {', '.join(kinds)}")
    return kinds[method](setup, problem, interrupted)


def _over(budget: Budget, begun: float) -> bool:
    return budget.seconds is not None and time.monotonic() - begun >= budget.seconds


def _reward(attempt: Attempt) -> float:
    """Best comes first; of equals the earliest stays, since `max` keeps the first."""
    return attempt.feedback.reward


@dataclass
class _Resampling:
    """Best of k: the same question again, nothing remembered."""

    setup: Components
    problem: Problem
    interrupted: Callable[[], bool]
    update: Update | None = None

    def ask(self, step: int, size: int, tell: ProgressCallback = no_progress) -> RolloutGroup:
        """Answers to the bare problem."""
        return self.answers(self.problem, step, size, tell)

    def answers(self, problem: Problem, step: int, size: int, tell: ProgressCallback) -> RolloutGroup:
        setup = self.setup
        seeds = rollout_seeds("solve", setup.cfg.train.seed, step, [problem], size)
        writer = ProgressPolicy(setup.policy, lambda: tell)
        found = sample(writer, setup.task, setup.chat, [problem], self.sampling, seeds, self.interrupted)
        if not found.groups:
            fix = "lower rollout.max_tokens, or choose a model with a longer context"
            raise DataError("the problem leaves no room for an answer", where=problem.id, fix=fix)
        return found.groups[0]

    @property
    def sampling(self) -> SamplingParams:
        rollout = self.setup.cfg.rollout
        at_once = self.setup.cfg.rollout.concurrency or CONCURRENCY
        return SamplingParams(rollout.max_tokens, rollout.temperature, rollout.top_p, self.setup.chat.eos_ids, at_once)


@dataclass
class _SelfDistillation(_Resampling):
    """SDPO: before the next batch, one step on the last one with what the environment said about it."""

    last: RolloutGroup | None = None

    def ask(self, step: int, size: int, tell: ProgressCallback = no_progress) -> RolloutGroup:
        """Answers of the student that has learned from all before."""
        if self.last is not None:
            self.update = self._learned(self.last, step - 1)
        self.last = self.answers(self.problem, step, size, tell)
        return self.last

    def _learned(self, group: RolloutGroup, step: int) -> Update | None:
        setup, cfg = self.setup, self.setup.cfg
        batch = distillation_batch(
            [group],
            setup.chat,
            cfg.teacher,
            cfg.objective,
            context_length=setup.policy.info.context_length,
            seed=derive(cfg.train.seed, step),
        )
        return learn(setup.policy, batch.samples, cfg, step, self.interrupted).update


@dataclass
class _Conversation(_Resampling):
    """Multi-turn: one answer at a time, each after all earlier answers and what was said about them.

    Where the conversation outgrows the model's context its oldest answers go, with what was said about them.
    """

    said: list[tuple[Message, ...]] = field(default_factory=list)

    def ask(self, step: int, size: int, tell: ProgressCallback = no_progress) -> RolloutGroup:  # noqa: ARG002 - one at a time
        """One answer to the conversation so far."""
        group = self.answers(self._extended(), step, 1, tell)
        rollout, feedback = group.rollouts[0], group.feedback[0]
        reply = f"{feedback.text.strip() or WRONG}\n\n{CLOSING_LINE}"
        self.said.append(history((*rollout.earlier, Exchange(replace(rollout, earlier=()), reply))))
        return group

    def _extended(self) -> Problem:
        room = self.setup.policy.info.context_length - self.setup.cfg.rollout.max_tokens
        while self.said:
            messages = (*self.problem.messages, *(message for exchange in self.said for message in exchange))
            if self.setup.chat.render(messages, tools=self.problem.tools).size <= room:
                return replace(self.problem, messages=messages)
            del self.said[0]
        return self.problem
