"""Sampling: whole batches in any order, graders that fail as data, grading while others are generated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import HANG_SECONDS

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.core.text import FEEDBACK_LIMIT
from sdpo_mlx.rl import rollouts
from sdpo_mlx.rl.rollouts import Sampler, rollout_seeds, sample
from sdpo_mlx.tasks import grading
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.grading import Graders, grade
from sdpo_mlx.types import Feedback, Generation, IntArray, Problem, Rollout

PARAMS = SamplingParams(max_tokens=8, temperature=1.0, top_p=1.0, eos_ids=frozenset({0}))
PASS = Feedback(1.0, True, "", "pass")


def problem(name: str) -> Problem:
    return Problem(name, ({"role": "user", "content": name},))


def rollout(text: str = "answer") -> Rollout:
    ids = np.array([1], np.int32)
    return Rollout(ids, ids, np.zeros(1, np.float32), "stop", 0, text)


class OwnTask(Task):
    """A task whose grader is any function of (problem, text)."""

    name, description, feedback_modes = "own", "", ("",)

    def __init__(self, judge: Callable[[Problem, str], Any]) -> None:
        self.judge = judge

    def problems(self, split: str) -> Sequence[Problem]:
        return [problem("a"), problem("b")]

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Any:
        return self.judge(problem, text)


class Letters:
    """A chat whose prompt is the text's bytes; an answer reads as its ids."""

    def render(self, messages: Any, *, tools: Any = (), generation_prompt: bool = True) -> IntArray:
        return np.frombuffer(messages[-1]["content"].encode(), np.uint8).astype(np.int32)

    def ended(self, generation: Generation) -> Generation:
        return generation

    def answer(self, ids: Any) -> str:
        return " ".join(str(int(i)) for i in ids)


class Scripted:
    """A policy that gives one rollout after another, last seed first, and tells what it did."""

    def __init__(self, between: Callable[[], Any] = lambda: None) -> None:
        self.info, self.between = SimpleNamespace(context_length=16), between

    def generate(
        self, prompts: Any, params: Any, seeds: Any, interrupted: Any = lambda: False
    ) -> Iterator[tuple[int, int, Generation]]:
        for at in reversed(range(len(prompts))):
            for n in reversed(range(len(seeds[at]))):
                ids = np.array([seeds[at][n], 0], np.int32)
                yield at, n, Generation(ids, np.zeros(2, np.float32), "stop")
                self.between()


def sampled(task: Any, names: Sequence[str] = ("a", "b"), policy: Any = None, **options: Any) -> rollouts.Sampled:
    seeds = [[10 * i + n for n in range(3)] for i in range(len(names))]
    return sample(policy or Scripted(), task, Letters(), [problem(n) for n in names], PARAMS, seeds, **options)  # type: ignore[arg-type]


def fail(*_: Any) -> Any:
    raise RuntimeError("the grader\x1b[31m broke")


def leave(*_: Any) -> Any:
    raise SystemExit(3)


WRONG = {
    "raises": fail,
    "exits": leave,
    "nan": lambda *_: Feedback(float("nan"), True, "", "pass"),
    "infinite": lambda *_: Feedback(float("inf"), True, "", "pass"),
    "nothing": lambda *_: None,
    "words": lambda *_: Feedback("much", True, "", "pass"),  # type: ignore[arg-type]
    "no verdict": lambda *_: Feedback(1.0, np.array([True, False]), "", "pass"),  # type: ignore[arg-type]
    "no text": lambda *_: Feedback(1.0, True, None, "pass"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("how", WRONG)
def test_a_grader_that_fails_is_data(how: str) -> None:
    task = OwnTask(lambda p, text: WRONG[how](p, text) if p.id == "a" else PASS)
    first, second = sampled(task).groups
    assert [f.kind for f in first.feedback] == ["grader_error"] * 3
    assert [(f.reward, f.success) for f in first.feedback] == [(0.0, False)] * 3
    assert all("\x1b" not in f.text for f in first.feedback)
    assert second.feedback == (PASS,) * 3


def test_long_feedback_is_cut_and_ten_megabytes_are_the_graders_fault() -> None:
    found = grade(OwnTask(lambda *_: Feedback(0.0, False, "x" * 900_000, "wrong")), problem("a"), "")
    assert len(found.text) <= FEEDBACK_LIMIT
    assert found.kind == "wrong"
    found = grade(OwnTask(lambda *_: Feedback(1.0, True, "x" * 10_000_000, "pass")), problem("a"), "")
    assert (found.kind, found.reward, len(found.text) < 100) == ("grader_error", 0.0, True)


def test_a_grader_that_hangs_costs_its_own_verdict_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(grading, "POLL_SECONDS", 0.01)
    forever = threading.Event()
    graders = Graders(OwnTask(lambda p, text: forever.wait() if text == "hang" else PASS), seconds=0.05)  # type: ignore[arg-type]
    futures = [graders.submit(problem("a"), rollout(text)) for text in ("hang", "hang", "hang", "fine", "fine")]
    kinds = [graders.result(future).kind for future in reversed(futures)][::-1]
    forever.set()
    assert kinds == ["grader_error"] * 3 + ["pass"] * 2


def test_a_long_queue_costs_nobody_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(grading, "POLL_SECONDS", 0.01)
    graders = Graders(OwnTask(lambda *_: time.sleep(0.1) or PASS), seconds=0.5)  # type: ignore[arg-type, func-returns-value]
    futures = [graders.submit(problem("a"), rollout()) for _ in range(9)]
    # the last waits for longer than the limit before its own turn comes
    assert graders.result(futures[-1]) == PASS
    assert all(graders.result(future) == PASS for future in futures)


def test_a_verdict_that_comes_too_late_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "POLL_SECONDS", 0.01)
    late, over = threading.Event(), threading.Event()

    def judge(*_: Any) -> Feedback:
        late.wait()
        over.set()
        return PASS

    graders = Graders(OwnTask(judge), seconds=0.02)  # type: ignore[arg-type]
    future = graders.submit(problem("a"), rollout())
    assert graders.result(future).kind == "grader_error"
    late.set()
    assert over.wait(HANG_SECONDS)
    assert graders.result(future).kind == "grader_error"
    assert graders.result(graders.submit(problem("a"), rollout())) == PASS


def test_waiting_for_a_verdict_can_be_interrupted() -> None:
    forever = threading.Event()
    asked = iter([False, False, True])
    with pytest.raises(KeyboardInterrupt):
        sampled(OwnTask(lambda *_: forever.wait()), interrupted=lambda: next(asked, True))
    forever.set()


def test_answers_are_graded_while_others_are_generated() -> None:
    graded = threading.Semaphore(0)
    policy = Scripted(between=lambda: graded.acquire(timeout=HANG_SECONDS) or pytest.fail("graded only afterwards"))
    found = sampled(OwnTask(lambda *_: graded.release() or PASS), policy=policy)  # type: ignore[func-returns-value]
    assert [len(group.rollouts) for group in found.groups] == [3, 3]


def test_rollouts_stand_in_the_order_of_their_seeds_whatever_finishes_first() -> None:
    seen = sampled(OwnTask(lambda p, text: Feedback(float(text.split()[0]), False, p.id, "wrong")))
    assert [r.seed for group in seen.groups for r in group.rollouts] == [0, 1, 2, 10, 11, 12]
    assert [f.reward for group in seen.groups for f in group.feedback] == [0, 1, 2, 10, 11, 12]
    assert [f.text for group in seen.groups for f in group.feedback] == ["a", "a", "a", "b", "b", "b"]


def test_a_prompt_that_does_not_fit_is_skipped_and_counted() -> None:
    found = sampled(OwnTask(lambda *_: PASS), names=("a", "far too long", "c"))
    assert [group.problem.id for group in found.groups] == ["a", "c"]
    assert [group.rollouts[0].seed for group in found.groups] == [0, 20]  # seeds stay with their problems
    assert [(skip.reason, skip.problem_id, skip.index) for skip in found.skips] == [("too_long", "far too long", -1)]


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31))


@settings(deadline=None)
@given(SIZES, st.integers(0, 200))
def test_a_batch_is_unique_and_a_pure_function_of_seed_and_step(sizes: tuple[int, int, int], step: int) -> None:
    count, size, seed = sizes
    problems = [problem(str(i)) for i in range(count)]
    batch = Sampler(problems, size, seed).batch(step)
    assert len({p.id for p in batch}) == len(batch) == min(size, count)
    assert Sampler(problems, size, seed).batch(step) == batch


@settings(deadline=None)
@given(SIZES)
def test_an_epoch_repeats_no_problem_and_leaves_out_less_than_a_batch(sizes: tuple[int, int, int]) -> None:
    count, size, seed = sizes
    sampler = Sampler([problem(str(i)) for i in range(count)], size, seed)
    seen = [p.id for step in range(count // min(size, count)) for p in sampler.batch(step)]
    assert len(set(seen)) == len(seen) > count - min(size, count)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 2**31))
def test_every_problem_is_seen_in_time(count: int, size: int, seed: int) -> None:
    sampler = Sampler([problem(str(i)) for i in range(count)], size, seed)
    steps = 60 * max(1, count // size)
    assert len({p.id for step in range(steps) for p in sampler.batch(step)}) == count


def test_another_seed_gives_another_order() -> None:
    problems = [problem(str(i)) for i in range(30)]
    orders = {tuple(p.id for p in Sampler(problems, 30, seed).batch(0)) for seed in range(20)}
    assert len(orders) == 20
    assert len({tuple(p.id for p in Sampler(problems, 30, 0).batch(step)) for step in range(20)}) == 20


def test_every_rollout_has_a_seed_of_its_own() -> None:
    problems = [problem("a"), problem("b"), problem("a")]
    found = [
        seed
        for purpose in ("rollout", "eval", "final")
        for run in (0, 1)
        for step in range(5)
        for group in rollout_seeds(purpose, run, step, problems, 4)
        for seed in group
    ]
    assert len(set(found)) == len(found) == 3 * 2 * 5 * 3 * 4
    assert rollout_seeds("eval", 0, 1, problems, 4) == rollout_seeds("eval", 0, 1, problems, 4)
