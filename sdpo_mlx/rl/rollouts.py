"""Sample and grade rollouts: generation and grading overlap, and a grader that fails is data, not a crash.

Episodes of several turns are sampled turn by turn, all open ones together. Each next prompt is rendered from the
problem's messages, the answers so far and the environment's replies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from sdpo_mlx.backends.base import Policy, PolicyInfo, SamplingParams
from sdpo_mlx.core.progress import ProgressCallback
from sdpo_mlx.core.seeding import derive, rng
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.grading import Graders, Response
from sdpo_mlx.teacher import history
from sdpo_mlx.types import (
    Exchange,
    Feedback,
    FloatArray,
    Generation,
    IntArray,
    Problem,
    Role,
    Rollout,
    RolloutGroup,
    Skip,
)


@dataclass(frozen=True)
class Sampled:
    """Rollout groups in the order of the problems, skipped prompts, and the time spent (seconds)."""

    groups: tuple[RolloutGroup, ...]
    skips: tuple[Skip, ...]
    generate_seconds: float
    grade_seconds: float


@dataclass(frozen=True)
class Sampler:
    """Selects the problems of each step, a pure function of (seed, step).

    An epoch is a permutation cut into whole batches; the rest of a permutation is dropped, so that no problem occurs
    twice in a batch.
    """

    problems: Sequence[Problem]
    size: int
    seed: int

    def batch(self, step: int) -> list[Problem]:
        """Return the problems of one step; all of them if there are fewer than `size`."""
        size = min(self.size, len(self.problems))
        epoch, place = divmod(step, len(self.problems) // size)
        order = rng("order", self.seed, epoch).permutation(len(self.problems))
        return [self.problems[int(i)] for i in order[place * size : (place + 1) * size]]


@dataclass(frozen=True)
class ProgressPolicy:
    """A policy that reports every rollout as it ends; `begun` is called before each turn, `ended` after it."""

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
        """Generate with the policy and report progress."""
        on_progress, total = self.begun(), sum(map(len, seeds))
        on_progress(0, total)
        for done, found in enumerate(self.policy.generate(prompts, sampling, seeds, interrupted), 1):
            on_progress(done, total)
            yield found
        self.ended()


def sample(
    policy: Policy | ProgressPolicy,
    task: Task,
    chat: Chat,
    problems: Sequence[Problem],
    sampling: SamplingParams,
    seeds: Sequence[Sequence[int]],
    interrupted: Callable[[], bool] = lambda: False,
) -> Sampled:
    """Sample one rollout for each seed of each problem, and grade it while others are still generated.

    An episode ends when the environment does not reply, after its last turn, after a truncated answer, or if the next
    prompt would not fit. Raises KeyboardInterrupt when `interrupted()` turns true; nothing has changed by then.
    """
    stage = _Stage(policy, chat, Graders(task), sampling, interrupted)
    begun = time.perf_counter()
    prompts = [chat.render(problem.messages, tools=problem.tools) for problem in problems]
    fitting = [i for i, prompt in enumerate(prompts) if prompt.size <= stage.room]
    skips = tuple(Skip("too_long", p.id, -1) for i, p in enumerate(problems) if i not in set(fitting))
    pending = stage.generate(
        [(prompts[i], [_Episode(problems[i], i, n, s) for n, s in enumerate(seeds[i])]) for i in fitting]
    )
    generated = time.perf_counter() - begun
    closed: dict[tuple[int, int], tuple[Rollout, Feedback]] = {}
    while pending:
        results = [(e, rollout, stage.graders.result(future, interrupted)) for e, rollout, future in pending]
        closed |= {(e.at, e.index): (rollout, r) for e, rollout, r in results if isinstance(r, Feedback)}
        resumed = time.perf_counter()
        pending = stage.next_turn([(e, rollout, reply) for e, rollout, reply in results if isinstance(reply, str)])
        generated += time.perf_counter() - resumed
    groups = []
    for i in fitting:
        rollouts, feedback = zip(*(closed[i, n] for n in range(len(seeds[i]))), strict=True)
        groups.append(RolloutGroup(problems[i], rollouts, feedback, last_decides=not task.grades_episodes))
    return Sampled(tuple(groups), skips, generated, time.perf_counter() - begun - generated)


@dataclass(frozen=True)
class _Episode:
    """An unfinished rollout: its problem, that problem's position, its index in the group, and the turns so far."""

    problem: Problem
    at: int
    index: int
    seed: int
    earlier: tuple[Exchange, ...] = ()

    @property
    def turn_seed(self) -> int:
        """The seed of the next answer, a function of the episode's seed and the turn alone."""
        return derive("turn", self.seed, len(self.earlier)) if self.earlier else self.seed


Pending = tuple[_Episode, Rollout, Future[Response]]  # a sampled answer and the environment's response to come


@dataclass(frozen=True)
class _Stage:
    """Calls model and environment in turn."""

    policy: Policy | ProgressPolicy
    chat: Chat
    graders: Graders
    sampling: SamplingParams
    interrupted: Callable[[], bool]

    @property
    def room(self) -> int:
        """The longest prompt, in tokens, that leaves room for an answer."""
        return self.policy.info.context_length - self.sampling.max_tokens

    def generate(self, requests: Sequence[tuple[IntArray, Sequence[_Episode]]]) -> list[Pending]:
        """Generate one answer for each episode, and start grading; each prompt has the episodes that share it."""
        seeds = [[episode.turn_seed for episode in episodes] for _, episodes in requests]
        prompts, pending = [prompt for prompt, _ in requests], []
        for at, n, generation in self.policy.generate(prompts, self.sampling, seeds, self.interrupted):
            episode = requests[at][1][n]
            rollout = to_rollout(self.chat, generation, prompts[at], seeds[at][n], episode.earlier)
            pending.append((episode, rollout, self.graders.submit(episode.problem, rollout)))
        return sorted(pending, key=lambda each: (each[0].at, each[0].index))

    def next_turn(self, replied: Sequence[tuple[_Episode, Rollout, str]]) -> list[Pending]:
        """Generate the next turn of episodes with a reply; grade those whose next prompt does not fit as they are."""
        over, requests = [], dict[tuple[int, bytes], tuple[IntArray, list[_Episode]]]()
        for episode, rollout, reply in replied:
            earlier = (*episode.earlier, Exchange(replace(rollout, earlier=()), reply))
            messages = (*episode.problem.messages, *history(earlier))
            prompt = self.chat.render(messages, tools=episode.problem.tools)
            if prompt.size > self.room:
                over.append((episode, rollout, self.graders.submit(episode.problem, rollout, over=True)))
            else:
                shared = requests.setdefault((episode.at, prompt.tobytes()), (prompt, []))
                shared[1].append(replace(episode, earlier=earlier))
        return [*over, *(self.generate(list(requests.values())) if requests else [])]


def rollout_seeds(purpose: str, seed: int, step: int, problems: Sequence[Problem], n: int) -> list[list[int]]:
    """Return one seed for each rollout, a pure function of (purpose, run seed, step, problem, position, index)."""
    return [[derive(purpose, seed, step, p.id, place, i) for i in range(n)] for place, p in enumerate(problems)]


def to_rollout(
    chat: Chat, generation: Generation, prompt_ids: IntArray, seed: int, earlier: tuple[Exchange, ...] = ()
) -> Rollout:
    """Return the rollout of what the policy generated; `earlier` are an episode's turns before it."""
    generation = chat.ended(generation)
    ids_T, text = generation.ids_T, chat.answer(generation.ids_T)
    return Rollout(prompt_ids, ids_T, generation.logps_T, generation.finish, seed, text, earlier=earlier)


def logps_of(policy: Policy, role: Role, rollouts: Sequence[Rollout], prompts: Sequence[IntArray]) -> list[FloatArray]:
    """Return the log-probs of each rollout's tokens (T) after the given prompt, under the student or the teacher."""
    if not rollouts:
        return []
    pairs = list(zip(prompts, (rollout.ids_T for rollout in rollouts), strict=True))
    sequences = [np.concatenate(pair).astype(np.int32) for pair in pairs]
    spans = [(prompt.size, prompt.size + ids.size) for prompt, ids in pairs]
    return [scores.logps_T for scores in policy.score(role, sequences, spans)]
