"""Problems in, rollout groups out: generation and grading overlap, and a bad rollout is data, not a crash."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from sdpo_mlx.backends.base import Policy, SamplingParams
from sdpo_mlx.chat import Chat
from sdpo_mlx.seeding import derive, rng
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.text import FEEDBACK_LIMIT, clean
from sdpo_mlx.types import Feedback, Generation, IntArray, Problem, Rollout, RolloutGroup, Skip

GRADER_SECONDS = 120.0  # a grader that takes longer hangs; tasks have shorter limits of their own
GRADER_THREADS = 8
GLANCE_SECONDS = 0.2  # how often waiting for a verdict looks up for signals and for graders that hang


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


def sample(
    policy: Policy,
    task: Task,
    chat: Chat,
    problems: Sequence[Problem],
    sampling: SamplingParams,
    seeds: Sequence[Sequence[int]],
    interrupted: Callable[[], bool] = lambda: False,
) -> Sampled:
    """One rollout a seed for each problem, graded while others are still being generated.

    Raises KeyboardInterrupt when `interrupted()` turns true; nothing has been changed by then.
    """
    prompts = [chat.render(problem.messages, tools=problem.tools) for problem in problems]
    limit = policy.info.context_length - sampling.max_tokens
    fitting = [i for i, prompt in enumerate(prompts) if prompt.size <= limit]
    skips = tuple(Skip("too_long", p.id, -1) for i, p in enumerate(problems) if i not in set(fitting))
    graders, begun = Graders(task), time.perf_counter()
    rollouts: dict[tuple[int, int], tuple[Rollout, Future[Feedback]]] = {}
    chosen = [prompts[i] for i in fitting]
    for at, n, generation in policy.generate(chosen, sampling, [seeds[i] for i in fitting], interrupted):
        rollout = _rollout(chat, generation, chosen[at], seeds[fitting[at]][n])
        rollouts[at, n] = rollout, graders.submit(problems[fitting[at]], rollout)
    generated = time.perf_counter()
    groups = []
    for at, i in enumerate(fitting):
        pairs = [rollouts[at, n] for n in range(len(seeds[i]))]
        feedback = tuple(graders.result(future, interrupted) for _, future in pairs)
        groups.append(RolloutGroup(problems[i], tuple(rollout for rollout, _ in pairs), feedback))
    return Sampled(tuple(groups), skips, generated - begun, time.perf_counter() - generated)


def rollout_seeds(purpose: str, seed: int, step: int, problems: Sequence[Problem], n: int) -> list[list[int]]:
    """A seed a rollout: a pure function of (purpose, run seed, step, problem, place in the step, index)."""
    return [[derive(purpose, seed, step, p.id, place, i) for i in range(n)] for place, p in enumerate(problems)]


def grade(task: Task, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
    """The task's verdict; whatever the grader raises or a reward that is no number is `grader_error`."""
    try:
        given = task.grade(problem, text, truncated=truncated)
        reward, success, said = float(given.reward), bool(given.success), clean(given.text, FEEDBACK_LIMIT)
        kind = given.kind
    except (Exception, SystemExit) as error:  # the one boundary: a grader's fault is never the model's
        return Feedback(0.0, False, clean(f"{type(error).__name__}: {error}", 500), "grader_error")
    if not math.isfinite(reward):
        return Feedback(0.0, False, "the reward is not a finite number", "grader_error")
    return Feedback(reward, success, said, kind)


class Graders:
    """Grading on a few daemon threads: one that hangs costs its own verdict and never the run.

    The clock of each answer starts when its grading does, so that a long queue costs nobody a verdict.
    """

    def __init__(self, task: Task, seconds: float = GRADER_SECONDS) -> None:
        self.task, self.seconds = task, seconds
        self._slots = threading.Semaphore(min(os.cpu_count() or 1, GRADER_THREADS))
        self._lock = threading.Lock()
        self._begun: dict[Future[Feedback], float] = {}

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Feedback]:
        """Start grading as soon as a thread is free."""
        future: Future[Feedback] = Future()
        threading.Thread(target=self._run, args=(problem, rollout, future), daemon=True).start()
        return future

    def result(self, future: Future[Feedback], interrupted: Callable[[], bool] = lambda: False) -> Feedback:
        """The verdict; `grader_error` when it does not come in time. Raises KeyboardInterrupt when asked to."""
        while True:
            if interrupted():
                raise KeyboardInterrupt
            try:
                return future.result(timeout=min(self.seconds, GLANCE_SECONDS))
            except TimeoutError:
                self._expire()

    def _run(self, problem: Problem, rollout: Rollout, future: Future[Feedback]) -> None:
        self._slots.acquire()
        with self._lock:
            self._begun[future] = time.monotonic()
        feedback = grade(self.task, problem, rollout.text, truncated=rollout.finish == "length")
        self._settle(future, feedback)

    def _expire(self) -> None:
        """Give up on every answer whose time is over; its thread is lost, so another may take its place."""
        with self._lock:
            late = [f for f, begun in self._begun.items() if time.monotonic() - begun >= self.seconds]
        for future in late:
            said = f"the grader took over {self.seconds:g} seconds"
            self._settle(future, Feedback(0.0, False, said, "grader_error"))

    def _settle(self, future: Future[Feedback], feedback: Feedback) -> None:
        with self._lock:
            first = self._begun.pop(future, None) is not None
        if first:
            self._slots.release()
            future.set_result(feedback)


def _rollout(chat: Chat, generation: Generation, prompt_ids: IntArray, seed: int) -> Rollout:
    return Rollout(
        prompt_ids=prompt_ids,
        ids_T=generation.ids_T,
        logps_T=generation.logps_T,
        finish=generation.finish,
        seed=seed,
        text=chat.decode(generation.ids_T),
    )
