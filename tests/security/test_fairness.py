"""A verdict depends on the program alone: not on its neighbours, and not on what else the machine does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from sdpo_mlx.config import SandboxConfig
from sdpo_mlx.sandbox.base import RunResult, Sandbox
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.sandbox.launch import Limits
from sdpo_mlx.tasks.code.formats.native import problem_from_row
from sdpo_mlx.tasks.code.task import CodeTask
from sdpo_mlx.types import Feedback, Problem

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap")

SECONDS = 2.0
WORKERS, BURNERS = 8, 4
ROW = {
    "id": "double",
    "statement": "Write double(x).",
    "entry": "double",
    "tests": [
        {"args": [21], "expected": 42, "public": True},
        {"args": [2], "expected": 4, "public": True},
        {"args": [987654], "expected": 1975308, "public": False},
    ],
}
# Burns a share of the limit in each of the two processes of one grading; asks the clock that load doesn't move.
SLOW = """import time
end = time.process_time() + {share}
while time.process_time() < end: pass
def double(x): return {value}
"""
KINDS = {
    "right": ("def double(x): return 2 * x", "pass"),
    "wrong": ("def double(x): return x", "wrong"),
    "hidden": ("def double(x): return {21: 42}.get(x, 4)", "wrong"),
    "error": ("def double(x): return {}[x]", "error"),
    "exit": ("import os\ndef double(x): os._exit(0)", "error"),
    "memory": ("def double(x): return bytearray(1 << 33)", "error"),
    "slow and right": (SLOW.format(share=0.3 * SECONDS, value="2 * x"), "pass"),
    "slow and wrong": (SLOW.format(share=0.3 * SECONDS, value="x"), "wrong"),
    "endless": ("def double(x):\n    while True: pass", "timeout"),
    "asleep": ("import time\ndef double(x): time.sleep(99)", "timeout"),
}
# How many of each in every 32: most answers are quick, a few are slow, timeouts are rare.
MIX = {"right": 10, "wrong": 8, "hidden": 4, "error": 4, "exit": 1, "memory": 1, "slow and right": 2}
MIX |= {"slow and wrong": 1, "endless": 1}


@contextmanager
def burners(count: int) -> Iterator[None]:
    """A machine that is busy with something else."""
    burning = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


def answers(count: int, asleep: int) -> list[tuple[str, str]]:
    """Kind and text of so many answers, no two equal, so that no verdict is remembered."""
    kinds = [kind for kind, many in MIX.items() for _ in range(many)]
    chosen = [kinds[(7 * n) % len(kinds)] for n in range(count - asleep)] + ["asleep"] * asleep
    return [(kind, f"```python\n{KINDS[kind][0]}\n# answer {n}\n```") for n, kind in enumerate(chosen)]


def flips(box: Sandbox, problem: Problem, count: int, asleep: int) -> list[tuple[str, Feedback]]:
    """Grade all on many threads; what came out other than it should."""
    task, asked = CodeTask(box), answers(count, asleep)
    with ThreadPoolExecutor(WORKERS) as pool:
        verdicts = list(pool.map(lambda answer: task.grade(problem, answer[1]), asked))
    return [(kind, said) for (kind, _), said in zip(asked, verdicts, strict=True) if said.kind != KINDS[kind][1]]


@needs_bwrap
@pytest.mark.parametrize(("repeats", "count", "asleep"), [(1, 32, 0), pytest.param(5, 256, 2, marks=pytest.mark.slow)])
def test_no_verdict_differs_beside_a_busy_machine(repeats: int, count: int, asleep: int) -> None:
    box = open_sandbox(SandboxConfig(kind="bubblewrap", seconds=SECONDS))
    problem = problem_from_row(ROW, "row")
    with burners(BURNERS):
        found = [flips(box, problem, count, asleep) for _ in range(repeats)]
    assert found == [[]] * repeats


class Overloaded:
    """A sandbox on a machine so busy that the clock runs out, as long as it is not asked alone."""

    kind = "overloaded"

    def __init__(self, inner: Sandbox, late: int) -> None:
        self.inner, self.late = inner, late
        self.limits = Limits(seconds=SECONDS)

    def run(self, program: str, stdin: bytes = b"", *, seconds: float | None = None) -> RunResult:
        self.late -= 1
        if self.late >= 0:
            return RunResult("timeout", -9, b"", b"", seconds or 0.0)
        return self.inner.run(program, stdin, seconds=seconds)

    def self_test(self) -> dict[str, bool]:
        return {}


def test_answer_that_was_starved_once_is_asked_again_alone() -> None:
    box = open_sandbox(SandboxConfig(kind="unconfined", seconds=SECONDS))
    problem, answer = problem_from_row(ROW, "row"), f"```python\n{KINDS['right'][0]}\n```"
    assert CodeTask(Overloaded(box, 1)).grade(problem, answer).success
    assert CodeTask(Overloaded(box, 2)).grade(problem, answer).kind == "timeout"


def test_endless_loop_is_a_timeout_on_its_first_call() -> None:
    box = open_sandbox(SandboxConfig(kind="unconfined", seconds=1.0))
    said = CodeTask(box).grade(problem_from_row(ROW, "row"), f"```python\n{KINDS['endless'][0]}\n```")
    assert said.kind == "timeout"
    assert said.text == "Time Limit Exceeded\nInput: double(21)"
