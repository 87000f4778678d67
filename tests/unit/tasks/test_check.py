"""`sdpo tasks check` finds what is odd in a task, and nothing in a good one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from sdpo_mlx.tasks import check
from sdpo_mlx.tasks.base import Split, Task
from sdpo_mlx.tasks.check import Report, check_task
from sdpo_mlx.types import Feedback, Problem

Verdict = Callable[[Problem, str], Feedback]


def rows(count: int = 5, prefix: str = "p") -> list[Problem]:
    asked = [f"What is {n} + {n}, in words ({prefix})?" for n in range(count)]
    return [
        Problem(f"{prefix}{n}", ({"role": "user", "content": text},), {"answer": f"the sum {2 * n}"})
        for n, text in enumerate(asked)
    ]


def fair(problem: Problem, text: str) -> Feedback:
    if text == problem.private["answer"]:
        return Feedback(1.0, True, "", "pass")
    return Feedback(0.0, False, f"{len(text)} characters, none of them right", "wrong")


@dataclass
class Made(Task):
    """A task with chosen faults."""

    verdict: Verdict = fair
    train: list[Problem] = field(default_factory=rows)
    held_out: list[Problem] = field(default_factory=lambda: rows(3, "h"))
    name: str = "made"
    description: str = "made for a test"
    feedback_modes: tuple[str, ...] = ("one",)

    def problems(self, split: Split) -> Sequence[Problem]:
        return self.train if split == "train" else self.held_out

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        return self.verdict(problem, text)


def wrong(text: str, reward: float = 0.0) -> Feedback:
    return Feedback(reward, False, text, "wrong")


def names(report: Report) -> set[str]:
    return {each.name for each in report.oddities}


def test_nothing_is_odd_about_a_good_task() -> None:
    report = check_task(Made())
    assert report.oddities == []
    assert report.ok
    assert len(report.trials) > 50


def raising(problem: Problem, text: str) -> Feedback:
    raise KeyError(text[:5])


def chance(problem: Problem, text: str) -> Feedback:
    return wrong(f"{random.random()}")


def upside_down(problem: Problem, text: str) -> Feedback:
    return Feedback(0.1, True, "", "pass") if text == "42" else wrong(f"no {text[:5]}", 0.5)


@pytest.mark.parametrize(
    ("verdict", "name", "fault"),
    [
        (raising, "raises", True),
        (lambda *_: wrong("", float("nan")), "raises", True),
        (lambda *_: Feedback(1.0, True, "", "pass"), "same_reward", True),
        (lambda *_: Feedback(1.0, True, "", "pass"), "empty_wins", True),
        (lambda _, text: wrong(text[:9] + "!"), "same_reward", False),
        (upside_down, "upside_down", True),
        (lambda *_: wrong(""), "no_feedback", False),
        (lambda _, text: wrong("" if len(text) > 9 else "short"), "empty_feedback", False),
        (lambda *_: wrong("wrong"), "same_feedback", False),
        (lambda *_: wrong("x" * 30_000), "long_feedback", False),
        (lambda *_: wrong("<object at 0x7f3a2b1c9d>"), "addresses", False),
        (lambda problem, _: wrong(f"expected {problem.private['answer']}"), "leaks", False),
        (chance, "unsteady", True),
    ],
)
def test_an_odd_grader_is_found(verdict: Verdict, name: str, fault: bool) -> None:
    report = check_task(Made(verdict))
    assert name in names(report)
    assert report.ok is not fault


def test_a_grader_that_hangs_or_is_slow_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "HANG_SECONDS", 0.2)
    assert names(check_task(Made(lambda *_: time.sleep(2) or wrong("x")))) >= {"hangs"}
    monkeypatch.setattr(check, "HANG_SECONDS", 20.0)
    monkeypatch.setattr(check, "SLOW_SECONDS", 0.0)
    assert "slow" in names(check_task(Made()))


class Unsteady(Made):
    """Other problems each time."""

    def problems(self, split: Split) -> Sequence[Problem]:
        return [rows(9)[random.randrange(9)] for _ in range(8)] if split == "train" else self.held_out


@pytest.mark.parametrize(
    ("task", "name", "fault"),
    [
        (Made(train=[]), "no_problems", True),
        (Made(held_out=[]), "nothing_held_out", False),
        (Made(held_out=rows(1)), "double_ids", True),
        (Made(train=[Problem("a", ({"role": "user", "content": "  "},), {})]), "empty_prompt", True),
        (Unsteady(), "unsteady_problems", True),
    ],
)
def test_odd_problems_are_found(task: Made, name: str, fault: bool) -> None:
    report = check_task(task)
    assert name in names(report)
    assert report.ok is not fault


def test_the_same_problems_in_both_splits_are_fine() -> None:
    assert "double_ids" not in names(check_task(Made(held_out=rows())))


class Solved(Made):
    """A task that knows its own solutions."""

    def solution(self, problem: Problem) -> Any:
        return problem.private["answer"]


def test_a_solution_must_be_graded_a_success() -> None:
    assert check_task(Solved()).ok
    report = check_task(Solved(lambda _, text: wrong(text[:9])))
    assert "solution_fails" in names(report)
    assert not report.ok


def test_a_value_quoted_from_the_answer_itself_is_no_leak() -> None:
    assert "leaks" not in names(check_task(Made(lambda _, text: wrong(f"you said {text[:99]}"))))


def test_a_problem_in_both_splits_is_a_hint() -> None:
    assert names(check_task(Made(held_out=[replace(rows(1)[0], id="h0")]))) == {"shared_prompts"}


def needs_a_program(_: Problem, text: str) -> Feedback:
    """Right, but nothing that can be guessed passes it."""
    return Feedback(1.0, True, "", "pass") if "def add" in text else wrong(f"no program: {text[:9]}")


def test_hint_on_a_grader_that_nothing_satisfied_says_what_was_tried() -> None:
    report = check_task(Made(needs_a_program))
    (hint,) = report.oddities
    assert (hint.level, hint.name, report.ok) == ("hint", "same_reward", True)
    for said in (f"each of the {len(report.trials)} answers tried", "'42'", "values of the rows ('the sum 0'"):
        assert said in hint.what
    assert "no reference answers; no solutions" in hint.what
    assert "fine if none of them is right" in hint.fix
    assert "whatever the answer" not in hint.what


def test_reference_is_tried_and_satisfies_the_grader_or_is_named() -> None:
    train = [replace(row, reference="def add(a, b): ...") for row in rows()]
    assert check_task(Made(needs_a_program, train=train)).oddities == []
    report = check_task(Made(train=train))
    assert names(report) == {"reference_fails"}
    assert report.ok
    unlike = check_task(Made(lambda _, text: wrong(text[:9] + "!"), train=train))
    hint = next(each for each in unlike.oddities if each.name == "same_reward")
    assert "reference answers ('def add(a, b): ...'" in hint.what
