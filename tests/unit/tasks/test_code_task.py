"""Programs are judged by type and value, told what went wrong, and cannot award themselves a pass."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from reward_hacks import HACKS

from sdpo_mlx.config import SandboxConfig, TaskConfig
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.sandbox.base import RunResult, Sandbox
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox
from sdpo_mlx.tasks.code.formats.native import problem_from_row
from sdpo_mlx.tasks.code.runner import GraderFailureError, Turnstile
from sdpo_mlx.tasks.code.task import CodeTask
from sdpo_mlx.types import Feedback, Problem

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap")

DOUBLE = {
    "id": "double",
    "statement": "Write double(x).",
    "entry": "double",
    "tests": [
        {"args": [21], "expected": 42, "public": True},
        {"args": [2], "expected": 4, "public": True},
        {"args": [987654], "expected": 1975308, "public": False},
    ],
}
ECHO = {
    "id": "sum",
    "statement": "Print the sum of the numbers on the line.",
    "tests": [
        {"input": "1 2 3\n", "output": "6\n", "public": True},
        {"input": "10 20\n", "output": "30\n", "public": True},
        {"input": "70 707\n", "output": "777\n", "public": False},
    ],
}
ASSERT = {
    "id": "assert",
    "statement": "Write double(x).",
    "entry": "double",
    "tests": [{"code": "assert double(3) == 6, 'three'", "public": True}],
}


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox(SandboxConfig(kind="bubblewrap", seconds=3.0))


def fenced(code: str) -> str:
    return f"Sure.\n```python\n{code}\n```\n"


def judged(box: Sandbox, row: dict[str, Any], code: str, feedback: str = "public") -> Feedback:
    return CodeTask(box, TaskConfig(feedback=feedback)).grade(problem_from_row(row, "row"), fenced(code))


@needs_bwrap
@pytest.mark.parametrize(
    ("row", "code"),
    [
        (DOUBLE, "def double(x):\n    return 2 * x"),
        (DOUBLE, "class Solution:\n    def double(self, x):\n        return 2 * x"),
        (DOUBLE, "print('noise')\ndef double(x):\n    print(x)\n    return 2 * x\nif __name__ == '__main__': input()"),
        (ECHO, "print(sum(map(int, input().split())))"),
        (ECHO, "import sys\nprint(sum(map(int, sys.stdin.read().split())))\nexit()"),
        (ECHO, "import os\nos.write(1, str(sum(map(int, open(0).read().split()))).encode())"),
        (ASSERT, "def double(x):\n    return 2 * x"),
    ],
)
@pytest.mark.parametrize("mode", ["public", "full", "none"])
def test_right_program_is_a_success_without_words(box: Sandbox, row: dict[str, Any], code: str, mode: str) -> None:
    assert judged(box, row, code, mode) == Feedback(1.0, True, "", "pass")


@needs_bwrap
def test_wrong_answers_are_told_with_two_shortest_public_cases(box: Sandbox) -> None:
    said = judged(box, DOUBLE, "def double(x):\n    return x")
    assert said.kind == "wrong"
    assert said.text == (
        "Test Case 2: Wrong Answer\nInput: double(2)\nOutput: 2\nExpected: 4\n\n"
        "Test Case 1: Wrong Answer\nInput: double(21)\nOutput: 21\nExpected: 42"
    )


@needs_bwrap
def test_error_is_told_with_lines_of_the_answer_alone(box: Sandbox) -> None:
    said = judged(box, DOUBLE, "def helper(x):\n    return x / 0\n\ndef double(x):\n    return helper(x)")
    assert said.kind == "error"
    assert said.text == (
        "Runtime Error\nZeroDivisionError: division by zero\n"
        "  line 5 in double: return helper(x)\n  line 2 in helper: return x / 0\nInput: double(21)"
    )


@needs_bwrap
def test_syntax_error_is_told_with_its_line(box: Sandbox) -> None:
    said = judged(box, DOUBLE, "def double(x):\n    return 2 *")
    assert said.text == "Runtime Error\nSyntaxError: invalid syntax\n  line 2: return 2 *"


@needs_bwrap
@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("none", ""),
        ("error_only", "Runtime Error\nKeyError: 21\n  line 1 in double: def double(x): return {}[x]"),
        ("full", "Runtime Error\nKeyError: 21\n  line 1 in double: def double(x): return {}[x]\nInput: double(21)"),
    ],
)
def test_modes_say_what_they_promise(box: Sandbox, mode: str, text: str) -> None:
    assert judged(box, DOUBLE, "def double(x): return {}[x]", mode).text == text
    wrong = judged(box, DOUBLE, "def double(x): return x", mode).text
    assert ("21" in wrong) == (mode == "full")


@needs_bwrap
@pytest.mark.parametrize("code", ["return 42 if x == 21 else 4", "return 2 * x if x < 99 else {}[x]"])
def test_hidden_failure_says_nothing_of_hidden_tests(box: Sandbox, code: str) -> None:
    said = judged(box, DOUBLE, f"def double(x):\n    {code}")
    assert said.text == "All visible tests pass, but some hidden tests fail."
    assert not said.success


@needs_bwrap
def test_hidden_inputs_never_reach_the_process_that_is_quoted(box: Sandbox) -> None:
    spy = (
        "import sys\ndef double(x):\n    frame, seen = sys._getframe(), ''\n"
        "    while frame:\n        seen += repr(frame.f_locals) + repr(frame.f_globals)\n        frame = frame.f_back\n"
        "    raise ValueError('987' '654' in seen or '1975' '308' in seen, repr(x) in seen)"
    )
    assert "ValueError: (False, True)" in judged(box, DOUBLE, spy).text


@needs_bwrap
def test_timeout_is_told_with_its_input_and_retried_once_alone(box: Sandbox) -> None:
    runs = []

    class Counting:
        kind = "counting"

        def run(self, program: str, stdin: bytes = b"", *, seconds: float | None = None) -> RunResult:
            runs.append(stdin)
            return box.run(program, stdin, seconds=0.5)

        def self_test(self) -> dict[str, bool]:
            return {}

    task = CodeTask(Counting())
    problem = problem_from_row(DOUBLE, "row")
    answer = fenced("def double(x):\n    while True: pass")
    said = task.grade(problem, answer)
    assert said == Feedback(0.0, False, "Time Limit Exceeded\nInput: double(21)", "timeout")
    assert len(runs) == 2
    assert task.grade(problem, answer) == said
    assert len(runs) == 2


def test_missing_and_cut_off_programs_are_told_the_format() -> None:
    task = CodeTask(Broken())
    problem = problem_from_row(DOUBLE, "row")
    assert "```python" in task.grade(problem, "just words").text
    cut = task.grade(problem, "```python\ndef dou", truncated=True)
    assert cut.kind == "invalid"
    assert "cut off" in cut.text
    assert "```python" in cut.text


class Broken:
    """A sandbox whose mechanism fails."""

    kind = "broken"

    def run(self, program: str, stdin: bytes = b"", *, seconds: float | None = None) -> RunResult:
        return RunResult("exited", 1, b"", b"bwrap: no", 0.0)

    def self_test(self) -> dict[str, bool]:
        return {}


def test_broken_sandbox_is_never_a_verdict() -> None:
    with pytest.raises(GraderFailureError, match=r"broken did not start a program \(bwrap: no, code 1\)") as caught:
        judged(Broken(), DOUBLE, "def double(x): return 2 * x")
    assert caught.value.exit_code == 4


class Hesitant:
    """A sandbox whose mechanism is late with its first starts."""

    kind = "hesitant"

    def __init__(self, late: int) -> None:
        self.late, self.inner = late, UnconfinedSandbox()

    def run(self, program: str, stdin: bytes = b"", *, seconds: float | None = None) -> RunResult:
        self.late -= 1
        if self.late >= 0:
            return RunResult("timeout", -9, b"", b"engine did not start Python within 30 s", 30.0, started=False)
        return self.inner.run(program, stdin, seconds=seconds)

    def self_test(self) -> dict[str, bool]:
        return {}


def test_start_that_was_late_is_tried_once_more_and_then_an_error_of_the_engine() -> None:
    assert judged(Hesitant(1), DOUBLE, "def double(x): return 2 * x").success
    with pytest.raises(GraderFailureError, match=r"hesitant did not start a program .engine did not start Python"):
        judged(Hesitant(2), DOUBLE, "def double(x): return 2 * x")


@needs_bwrap
def test_feedback_stays_short_for_huge_values(box: Sandbox) -> None:
    tests = [{"args": ["x\n" * 3000 + str(i)], "expected": "y" * 900, "public": True} for i in range(5)]
    said = judged(box, {**DOUBLE, "tests": tests}, "def double(x): return x")
    assert len(said.text) <= 2000
    assert max(map(len, said.text.splitlines())) <= 260


@needs_bwrap
@pytest.mark.parametrize("name", ["exit", "exit in function", "os._exit", "atexit", "raises success", "writes to fd 1"])
def test_simple_hack_fails_where_assertions_run_inside(box: Sandbox, name: str) -> None:
    assert not judged(box, ASSERT, HACKS[name]).success


@needs_bwrap
def test_feedback_is_the_same_in_every_run_and_thread(box: Sandbox) -> None:
    problem: Problem = problem_from_row(DOUBLE, "row")
    answer = fenced("def double(x): raise ValueError(object(), {'b', 'a', 'c'})")
    texts: list[str] = []
    work = [threading.Thread(target=lambda: texts.append(CodeTask(box).grade(problem, answer).text)) for _ in range(4)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(texts) == 4
    assert len(set(texts)) == 1


def test_turnstile_lets_nobody_in_beside_one_who_is_alone() -> None:
    turnstile, log, inside = Turnstile(), [], threading.Event()

    def shared() -> None:
        inside.set()
        with turnstile.shared():
            log.append("shared")

    with turnstile.alone():
        thread = threading.Thread(target=shared)
        thread.start()
        inside.wait()
        log.append("alone")
    thread.join()
    assert log == ["alone", "shared"]


def test_unknown_mode_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="Choose one of public"):
        CodeTask(Broken(), TaskConfig(feedback="loud"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"id": ""}, "id is missing"),
        ({"statement": 3}, "statement is missing"),
        ({"entry": None}, "entry is missing"),
        ({"entry": "not a name"}, "not a function name"),
        ({"tests": []}, "tests is missing"),
        ({"tests": [{"args": [1]}]}, "expected is missing"),
        ({"tests": [{"args": 1, "expected": 1}]}, "args is missing or of the wrong type"),
        ({"tests": [{"what": 1}]}, "no known kind"),
        ({"tests": [{"args": [], "expected": {"$set": [[1]]}}]}, "tagged value"),
        ({"tests": [{"args": [], "expected": 1, "public": "yes"}]}, "true or false"),
        ({"tests": [{"args": [], "expected": "x" * 40_000}]}, "too long"),
        ({"tolerance": -1}, "tolerance"),
        ({"split": "tested"}, "split"),
        ({"soluton": 1}, "unknown field 'soluton'"),
    ],
)
def test_bad_row_is_named(change: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        problem_from_row({**DOUBLE, **change}, "mine.jsonl:7")
    assert "mine.jsonl:7" in caught.value.line()


def test_own_problems_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [DOUBLE, {**ECHO, "split": "held_out", "family": "sums"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = CodeTask(Broken(), TaskConfig(data=str(path)))
    assert [p.id for p in task.problems("train")] == ["double"]
    held_out = task.problems("held_out")
    assert [(p.id, p.family) for p in held_out] == [("sum", "sums")]
    assert "reads standard input" in held_out[0].messages[0]["content"]
