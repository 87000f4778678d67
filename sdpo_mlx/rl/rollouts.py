"""Problems in, rollout groups out: generation and grading overlap, and a bad rollout is data, not a crash.

Episodes of several turns are sampled turn by turn, all that are still open together. Each next prompt is
rendered anew from the problem's messages, the answers so far and what the environment replied.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from sdpo_mlx.backends.base import Policy, PolicyInfo, SamplingParams
from sdpo_mlx.core.progress import ProgressCallback
from sdpo_mlx.core.seeding import derive, rng
from sdpo_mlx.core.text import FEEDBACK_LIMIT, clean
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.tasks.base import Task, turns_of
from sdpo_mlx.teacher import history
from sdpo_mlx.types import Exchange, Feedback, Generation, IntArray, Problem, Rollout, RolloutGroup, Skip

GRADER_SECONDS = 120.0  # a grader that takes longer hangs; tasks have shorter limits of their own
GRADER_THREADS = 8
ABSURD_FEEDBACK = 1_000_000  # characters; a grader that writes more is broken, whatever it meant to say
GLANCE_SECONDS = 0.2  # how often waiting for a verdict looks up for signals and for graders that hang

Word = Feedback | str  # a verdict, which ends the episode, or a reply, after which it goes on


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
        groups.append(RolloutGroup(problems[i], rollouts, feedback, last_decides=not hasattr(task, "grade_turns")))
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

    def ask(self, asked: Sequence[tuple[IntArray, Sequence[_Episode]]]) -> list[tuple[_Episode, Rollout, Future[Word]]]:
        """One answer an episode, each prompt with the episodes that share it; in the order of their places."""
        seeds = [[episode.turn_seed for episode in episodes] for _, episodes in asked]
        prompts, said = [prompt for prompt, _ in asked], []
        for at, n, generation in self.policy.generate(prompts, self.sampling, seeds, self.interrupted):
            episode = asked[at][1][n]
            rollout = _rollout(self.chat, generation, prompts[at], seeds[at][n], episode.earlier)
            said.append((episode, rollout, self.graders.submit(episode.problem, rollout)))
        return sorted(said, key=lambda each: (each[0].at, each[0].index))

    def go_on(self, replied: Sequence[tuple[_Episode, Rollout, str]]) -> list[tuple[_Episode, Rollout, Future[Word]]]:
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


def grade(task: Task, problem: Problem, text: str, *, earlier: Sequence[str] = (), truncated: bool = False) -> Feedback:
    """The task's verdict; whatever the grader raises or a reward that is no number is `grader_error`.

    `earlier` are the episode's answers before `text`; a task with `grade_turns` judges them all.
    """
    whole = getattr(task, "grade_turns", None)
    try:
        if whole is None:
            given = task.grade(problem, text, truncated=truncated)
        else:
            given = whole(problem, (*earlier, text), truncated=truncated)
        if len(given.text) > ABSURD_FEEDBACK:
            raise ValueError(f"the grader's feedback has {len(given.text):,} characters")
        reward, success, said = float(given.reward), bool(given.success), clean(given.text, FEEDBACK_LIMIT)
        kind = given.kind
    except (Exception, SystemExit) as error:  # the one boundary: a grader's fault is never the model's
        return _failed(error)
    if not math.isfinite(reward):
        return Feedback(0.0, False, "the reward is not a finite number", "grader_error")
    return Feedback(reward, success, said, kind)


def answered(task: Task, problem: Problem, rollout: Rollout, *, over: bool = False) -> Word:
    """What the environment says to the latest answer: a reply where the episode goes on, else its verdict.

    `over` says that there will be no further turn. A reply that fails ends the episode as `grader_error`.
    """
    answers, truncated = rollout.answers, rollout.finish == "length"
    reply: Callable[[Problem, Sequence[str]], object] | None = getattr(task, "reply", None)
    try:
        if reply is not None and not over and not truncated and len(answers) < turns_of(task):
            said = reply(problem, answers)
            if isinstance(said, str):
                return clean(said, FEEDBACK_LIMIT)
            if said is not None:
                raise TypeError(f"a reply is text or None, not {type(said).__name__}")
    except (Exception, SystemExit) as error:
        return _failed(error)
    return grade(task, problem, answers[-1], earlier=answers[:-1], truncated=truncated)


def _failed(error: BaseException) -> Feedback:
    where = f" ({', '.join(notes)})" if (notes := getattr(error, "__notes__", ())) else ""
    return Feedback(0.0, False, f"{clean(f'{type(error).__name__}: {error}', 500)}{clean(where, 500)}", "grader_error")


class Graders:
    """Grading on a few daemon threads: one that hangs costs its own verdict and never the run.

    The clock of each answer starts when its grading does, so that a long queue costs nobody a verdict.
    """

    def __init__(self, task: Task, seconds: float = GRADER_SECONDS) -> None:
        self.task, self.seconds = task, seconds
        self._slots = threading.Semaphore(min(os.cpu_count() or 1, GRADER_THREADS))
        self._lock = threading.Lock()
        self._begun: dict[Future[Word], float] = {}

    def submit(self, problem: Problem, rollout: Rollout, *, over: bool = False) -> Future[Word]:
        """Start grading (or replying, while the episode is not `over`) as soon as a thread is free."""
        future: Future[Word] = Future()
        threading.Thread(target=self._run, args=(problem, rollout, over, future), daemon=True).start()
        return future

    def result(self, future: Future[Word], interrupted: Callable[[], bool] = lambda: False) -> Word:
        """What was said; `grader_error` when it does not come in time. Raises KeyboardInterrupt when asked to."""
        while True:
            if interrupted():
                raise KeyboardInterrupt
            try:
                return future.result(timeout=min(self.seconds, GLANCE_SECONDS))
            except TimeoutError:
                self._expire()

    def _run(self, problem: Problem, rollout: Rollout, over: bool, future: Future[Word]) -> None:
        self._slots.acquire()
        with self._lock:
            self._begun[future] = time.monotonic()
        self._settle(future, answered(self.task, problem, rollout, over=over))

    def _expire(self) -> None:
        """Give up on every answer whose time is over; its thread is lost, so another may take its place."""
        with self._lock:
            late = [f for f, begun in self._begun.items() if time.monotonic() - begun >= self.seconds]
        for future in late:
            said = f"the grader took over {self.seconds:g} seconds"
            self._settle(future, Feedback(0.0, False, said, "grader_error"))

    def _settle(self, future: Future[Word], word: Word) -> None:
        with self._lock:
            first = self._begun.pop(future, None) is not None
        if first:
            self._slots.release()
            future.set_result(word)


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
