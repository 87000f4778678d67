"""Problems in, rollout groups out: generation and grading overlap, and a bad rollout is data, not a crash.

Episodes of several turns are sampled turn by turn, all that are still open together. Each next prompt is
rendered anew from the problem's messages, the answers so far and what the environment replied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from sdpo_mlx.backends.base import Policy, PolicyInfo, SamplingParams
from sdpo_mlx.core.progress import ProgressCallback
from sdpo_mlx.core.seeding import derive, rng
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.grading import Graders, Response
from sdpo_mlx.teacher import history
from sdpo_mlx.types import Exchange, Feedback, Generation, IntArray, Problem, Rollout, RolloutGroup, Skip


@dataclass(frozen=True)
class Sampled:
    """Groups in the order of the problems, prompts that did not fit, and where the time went (seconds)."""

    groups: tuple[RolloutGroup, ...]
    skips: tuple[Skip, ...]
    generate_seconds: float
    grade_seconds: float


@dataclass(frozen=True)
class Sampler:
    """Which problems each step sees: a pure function of (seed, step).

    An epoch is a permutation cut into whole batches; what does not fill one waits for the next permutation,
    so no problem stands twice in a batch.
    """

    problems: Sequence[Problem]
    size: int
    seed: int

    def batch(self, step: int) -> list[Problem]:
        """The problems of one step; all of them where there are fewer than `size`."""
        size = min(self.size, len(self.problems))
        epoch, place = divmod(step, len(self.problems) // size)
        order = rng("order", self.seed, epoch).permutation(len(self.problems))
        return [self.problems[int(i)] for i in order[place * size : (place + 1) * size]]


class Generator(Protocol):
    """The part of a policy that sampling asks."""

    @property
    def info(self) -> PolicyInfo: ...

    def generate(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, int, Generation]]: ...


@dataclass(frozen=True)
class ProgressPolicy:
    """A policy that tells of every answer as it comes; `begun` is called before each turn, `ended` after it."""

    policy: Policy
    begun: Callable[[], ProgressCallback]
    ended: Callable[[], object] = lambda: None

    @property
    def info(self) -> PolicyInfo:
        """The policy's own."""
        return self.policy.info

    def generate(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, int, Generation]]:
        """The policy's own, counted."""
        tell, total = self.begun(), sum(map(len, seeds))
        tell(0, total)
        for done, found in enumerate(self.policy.generate(prompts, sampling, seeds, interrupted), 1):
            tell(done, total)
            yield found
        self.ended()


def sample(
    policy: Generator,
    task: Task,
    chat: Chat,
    problems: Sequence[Problem],
    sampling: SamplingParams,
    seeds: Sequence[Sequence[int]],
    interrupted: Callable[[], bool] = lambda: False,
) -> Sampled:
    """One rollout a seed for each problem, graded while others are still being generated.

    An episode ends when the environment says so, with its last turn, with an answer that was cut off, or where
    the next prompt would not fit. Raises KeyboardInterrupt when `interrupted()` turns true; nothing has been
    changed by then.
    """
    stage = _Stage(policy, chat, Graders(task), sampling, interrupted)
    begun = time.perf_counter()
    prompts = [chat.render(problem.messages, tools=problem.tools) for problem in problems]
    fitting = [i for i, prompt in enumerate(prompts) if prompt.size <= stage.room]
    skips = tuple(Skip("too_long", p.id, -1) for i, p in enumerate(problems) if i not in set(fitting))
    said = stage.ask([(prompts[i], [_Episode(problems[i], i, n, s) for n, s in enumerate(seeds[i])]) for i in fitting])
    generated = time.perf_counter() - begun
    closed: dict[tuple[int, int], tuple[Rollout, Feedback]] = {}
    while said:
        heard = [(episode, rollout, stage.graders.result(future, interrupted)) for episode, rollout, future in said]
        closed |= {(e.at, e.index): (rollout, word) for e, rollout, word in heard if isinstance(word, Feedback)}
        again = time.perf_counter()
        said = stage.go_on([(episode, rollout, word) for episode, rollout, word in heard if isinstance(word, str)])
        generated += time.perf_counter() - again
    groups = []
    for i in fitting:
        rollouts, feedback = zip(*(closed[i, n] for n in range(len(seeds[i]))), strict=True)
        groups.append(RolloutGroup(problems[i], rollouts, feedback, last_decides=not task.grades_episodes))
    return Sampled(tuple(groups), skips, generated, time.perf_counter() - begun - generated)


@dataclass(frozen=True)
class _Episode:
    """One rollout in the making: which it is (the problem's place and the index), and what was said so far."""

    problem: Problem
    at: int
    index: int
    seed: int
    earlier: tuple[Exchange, ...] = ()

    @property
    def turn_seed(self) -> int:
        """What the next answer draws from: a function of the episode's own seed and the turn alone."""
        return derive("turn", self.seed, len(self.earlier)) if self.earlier else self.seed


Pending = tuple[_Episode, Rollout, Future[Response]]  # a sampled answer and the environment's response to come


@dataclass(frozen=True)
class _Stage:
    """Asks the model and the environment in turn."""

    policy: Generator
    chat: Chat
    graders: Graders
    sampling: SamplingParams
    interrupted: Callable[[], bool]

    @property
    def room(self) -> int:
        """The longest prompt, in tokens, that leaves room for an answer."""
        return self.policy.info.context_length - self.sampling.max_tokens

    def ask(self, asked: Sequence[tuple[IntArray, Sequence[_Episode]]]) -> list[Pending]:
        """One answer an episode, each prompt with the episodes that share it; in the order of their places."""
        seeds = [[episode.turn_seed for episode in episodes] for _, episodes in asked]
        prompts, said = [prompt for prompt, _ in asked], []
        for at, n, generation in self.policy.generate(prompts, self.sampling, seeds, self.interrupted):
            episode = asked[at][1][n]
            rollout = _rollout(self.chat, generation, prompts[at], seeds[at][n], episode.earlier)
            said.append((episode, rollout, self.graders.submit(episode.problem, rollout)))
        return sorted(said, key=lambda each: (each[0].at, each[0].index))

    def go_on(self, replied: Sequence[tuple[_Episode, Rollout, str]]) -> list[Pending]:
        """The next turn of episodes that got a reply; one whose next prompt does not fit is judged as it is."""
        over, asked = [], dict[tuple[int, bytes], tuple[IntArray, list[_Episode]]]()
        for episode, rollout, reply in replied:
            earlier = (*episode.earlier, Exchange(replace(rollout, earlier=()), reply))
            messages = (*episode.problem.messages, *history(earlier))
            prompt = self.chat.render(messages, tools=episode.problem.tools)
            if prompt.size > self.room:
                over.append((episode, rollout, self.graders.submit(episode.problem, rollout, over=True)))
            else:
                shared = asked.setdefault((episode.at, prompt.tobytes()), (prompt, []))
                shared[1].append(replace(episode, earlier=earlier))
        return [*over, *(self.ask(list(asked.values())) if asked else [])]


def rollout_seeds(purpose: str, seed: int, step: int, problems: Sequence[Problem], n: int) -> list[list[int]]:
    """A seed a rollout: a pure function of (purpose, run seed, step, problem, place in the step, index)."""
    return [[derive(purpose, seed, step, p.id, place, i) for i in range(n)] for place, p in enumerate(problems)]


def _rollout(
    chat: Chat, generation: Generation, prompt_ids: IntArray, seed: int, earlier: tuple[Exchange, ...]
) -> Rollout:
    return Rollout(
        prompt_ids=prompt_ids,
        ids_T=generation.ids_T,
        logps_T=generation.logps_T,
        finish=generation.finish,
        seed=seed,
        text=chat.decode(generation.ids_T),
        earlier=earlier,
    )
