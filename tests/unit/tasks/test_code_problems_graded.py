"""The shipped Python problems through the sandbox: references succeed, wrong programs fail and are told why."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

import pytest
from code_problems import ROWS, SOLUTIONS, SPLITS, TOO_SLOW

from sdpo_mlx.config import SandboxConfig, TaskConfig
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.tasks.base import Split
from sdpo_mlx.tasks.code.task import CodeTask
from sdpo_mlx.types import Feedback, Problem


@pytest.fixture(scope="module")
def task() -> CodeTask:
    if sys.platform == "linux" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is missing: apt install bubblewrap")
    return CodeTask(open_sandbox(SandboxConfig()))


def grade(task: CodeTask, problem: Problem, kind: str = "right") -> Feedback:
    source = SOLUTIONS[problem.id.removeprefix("code/"), kind]
    return task.grade(problem, f"Here it is.\n```python\n{source}```\n")


def test_task_offers_exactly_the_shipped_problems(task: CodeTask) -> None:
    for split in SPLITS:
        assert [p.id for p in task.problems(split)] == [row["id"] for row in ROWS if row["split"] == split]


def check_right(task: CodeTask, problems: Sequence[Problem]) -> None:
    judged = {problem.id: grade(task, problem) for problem in problems}
    assert {name: said.text for name, said in judged.items() if not said.success} == {}


@pytest.mark.parametrize("split", SPLITS)
def test_a_third_of_the_references_is_a_success_in_one_run_in_the_sandbox(task: CodeTask, split: Split) -> None:
    """With nothing hidden all tests share one start, which halves the time."""
    check_right(CodeTask(open_sandbox(SandboxConfig()), TaskConfig(feedback="full")), task.problems(split)[::3])


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_every_reference_is_a_success_with_hidden_tests_apart(task: CodeTask, split: Split) -> None:
    check_right(task, task.problems(split))


def check_wrong(task: CodeTask, problems: Sequence[Problem], kind: str) -> None:
    judged = {problem.id: grade(task, problem, kind) for problem in problems}
    assert [name for name, said in judged.items() if said.success or said.reward] == []
    assert [name for name, said in judged.items() if said.kind not in ("wrong", "error")] == []
    assert [name for name, said in judged.items() if not said.text.strip()] == []


def endings(task: CodeTask, split: Split) -> list[Problem]:
    """The problems whose wrong programs all come to an end."""
    return [problem for problem in task.problems(split) if problem.id not in TOO_SLOW]


@pytest.mark.parametrize(("split", "kind"), [("train", "wrong"), ("held_out", "wrong2")])
def test_a_third_of_the_wrong_solutions_is_a_failure_that_is_told_why(task: CodeTask, split: Split, kind: str) -> None:
    check_wrong(task, endings(task, split)[::3], kind)


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["wrong", "wrong2"])
def test_every_wrong_solution_is_a_failure_that_is_told_why(task: CodeTask, split: Split, kind: str) -> None:
    check_wrong(task, endings(task, split), kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TOO_SLOW))
def test_program_that_takes_for_ever_is_told_so(name: str) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is missing: apt install bubblewrap")
    hurried = CodeTask(open_sandbox(SandboxConfig(seconds=1.0)))
    problem = next(p for p in hurried.problems("train") if p.id == name)
    said = grade(hurried, problem, "wrong2")
    assert said.kind == "timeout"
    assert said.text == "All visible tests pass, but some hidden tests fail."
