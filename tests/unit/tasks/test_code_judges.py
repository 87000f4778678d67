"""Rows of public contest sets are judged as their own judges do, with their limits; own rows stay strict."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from sdpo_mlx.config import SandboxConfig
from sdpo_mlx.sandbox.base import RunResult, Sandbox
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.sandbox.launch import Limits
from sdpo_mlx.tasks.code import runner, task
from sdpo_mlx.tasks.code.compare import same, same_output
from sdpo_mlx.tasks.code.diff import output_difference
from sdpo_mlx.tasks.code.formats.assertions import mbpp
from sdpo_mlx.tasks.code.formats.contests import apps, authors_json, livecodebench
from sdpo_mlx.tasks.code.formats.native import problem_from_row
from sdpo_mlx.tasks.code.task import CodeTask
from sdpo_mlx.types import Feedback, Problem

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap")


def lcb(tests: list[tuple[str, str]], entry: str | None = None) -> Problem:
    """A LiveCodeBench problem with these public inputs and outputs."""
    kind = "functional" if entry else "stdin"
    cases = [{"input": given, "output": wanted, "testtype": kind} for given, wanted in tests]
    row = {"question_content": "Do it.", "private_test_cases": "[]", "public_test_cases": json.dumps(cases)}
    return livecodebench({**row, "metadata": json.dumps({"func_name": entry} if entry else {})}, "row")


def apps_problem(inputs: list[Any], outputs: list[Any], entry: str | None = None) -> Problem:
    """An APPS problem."""
    sets = {"inputs": inputs, "outputs": outputs, **({"fn_name": entry} if entry else {})}
    return apps({"question": "Do it.", "input_output": json.dumps(sets)}, "row")


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox(SandboxConfig(kind="bubblewrap", seconds=0.5))


def graded(box: Sandbox, problem: Problem, code: str) -> Feedback:
    return CodeTask(box).grade(problem, f"```python\n{code}\n```")


@pytest.mark.parametrize(
    ("expected", "got", "decimal", "allclose"),
    [
        ("3", "3.0\n", True, True),
        ("2.50", "2.5", True, True),
        ("7", " 7", True, True),
        ("1 2.0", "1.0  2", True, True),
        ("1000", "1e3", True, True),
        ("a\n b", "a \nb\n\n", True, True),
        ("50000000000000000", "50000000000000001", False, False),
        ("100000", "100001", False, False),
        ("0.33333", "0.3333333333333333", False, True),
        ("0.33333 x", "0.3333333333333333 x", False, True),
        ("0.333", "0.334", False, False),
        ("0", "0.00000001", False, True),
        ("0", "0.0000001", False, False),
        ("1\n2", "1 2", False, False),
        ("1 2", "2 1", False, False),
        ("1\n\n2", "1\n2", False, True),
        ("YES", "yes", False, False),
        ("a  b", "a b", False, True),
        ("inf", "inf", True, True),
        ("1", "inf", False, False),
        ("inf", "1", False, False),
        ("nan", "1", False, False),
        ("1", "snan", False, False),
        ("", "\n", True, True),
        ("1", "", False, False),
    ],
)
def test_printed_text_is_compared_as_each_judge_does(expected: str, got: str, decimal: bool, allclose: bool) -> None:
    assert same_output(expected, got, equality="decimal") is decimal
    assert same_output(expected, got, equality="allclose") is allclose
    for equality, right in (("decimal", decimal), ("allclose", allclose)):
        assert right or output_difference(expected, got, equality=equality)


@pytest.mark.parametrize(
    ("expected", "got", "right"),
    [
        ([2, 1], (2, 1), True),
        ([[1, 2], [3]], [(1, 2), (3,)], True),
        ({"1": [2]}, {1: (2,)}, True),
        ({"-1": 0, "a": 1}, {-1: 0, "a": 1}, True),
        ({"true": 1, "null": 2}, {True: 1, None: 2}, True),
        ({"1": 2}, {"1": 2}, True),
        ({"1": 2}, {1: 3}, False),
        ({"1": 2}, {2: 2}, False),
        ([1], [True], True),  # as in both judges, by Python's own comparison
        ([1, 2], {1, 2}, False),
        ([2, 1], (1, 2), False),
        ("12", 12, False),
        ([1], [1, 1], False),
        ({"1": 2}, {1: 2, 10**5000: 2}, False),
    ],
)
def test_values_are_compared_as_json_writes_them(expected: Any, got: Any, right: bool) -> None:
    assert same(expected, got, equality="json") is right
    assert not same([2, 1], (2, 1))  # an own row stays strict


def test_rows_of_every_set_get_their_rules_and_limits() -> None:
    pairs = {"inputs": ["1"], "outputs": ["1"], "testtype": "stdin", "fn_name": "", "time_limit": 2}
    authors = {"kind": "code", "prompt": "Do it.", "tests": json.dumps(pairs), "dataset": "livecodebench"}
    own = {"id": "a", "statement": "Do it.", "tests": [{"input": "1", "output": "1"}]}
    problems = [
        lcb([("1", "1")]),
        apps_problem(["1"], ["1"]),
        authors_json(authors, "row"),
        problem_from_row(own, "row"),
    ]
    found = [
        (p.private["test_seconds"], p.private["memory_mb"], p.private["tests"][0].get("equality")) for p in problems
    ]
    assert found == [(6, 4096, "decimal"), (4, 4096, "allclose"), (2, 4096, "decimal"), (None, None, None)]


def test_dictionary_that_is_the_one_argument_gets_its_integer_keys_back() -> None:
    tests = apps_problem([[{"1": 2}], [{"a": 2}], [{"1": 2}, 3]], [0, 0, 0], "f").private["tests"]
    assert [test["args"] for test in tests] == [[{"$dict": [[1, 2]]}], [{"a": 2}], [{"1": 2}, 3]]


def test_total_time_is_bounded_and_a_row_without_limits_keeps_the_sandboxs() -> None:
    limits = Limits(seconds=6.0, total_seconds=60.0)
    counted = [runner.seconds_of(limits, each, tests) for each, tests in ((None, 100), (6.0, 3), (6.0, 100), (90.0, 9))]
    assert counted == [6.0, 18.0, 60.0, 90.0]


class Late:
    """A sandbox whose programs end by a signal in the second test, after so many seconds."""

    kind, limits = "late", Limits(total_seconds=10.0)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, _program: str, stdin: bytes = b"", **_: object) -> RunResult:
        job = json.loads(stdin)
        lines = [{"nonce": job["nonce"], "test": -1}, {"nonce": job["nonce"], "test": 0, "output": "1"}]
        return RunResult("signal", -24, "\n".join(map(json.dumps, lines)).encode(), b"", self.seconds)

    def self_test(self) -> dict[str, bool]:
        return {}


@pytest.mark.parametrize(
    ("seconds", "said"), [(7.0, "Exceeded\n"), (10.5, "Exceeded (all tests together may take 10 s)\n")]
)
def test_timeout_of_all_tests_together_is_told(seconds: float, said: str) -> None:
    assert f"Time Limit {said}Input: 2" in graded(Late(seconds), lcb([("1", "1"), ("2", "2")]), "x").text


def test_problem_is_shown_with_its_tests_and_limits() -> None:
    row = {"id": "a", "statement": "Do it.", "tests": [{"input": "1", "output": "1"}]}
    coder = CodeTask(Late(0.0))
    assert coder.notes(lcb([("1", "1")] * 3)) == (
        "tests: 3, of which 3 may be quoted in the feedback",
        "limits: 6 s of processor time for each test, 10 s for all tests of a run, 4,096 MB",
    )
    assert (
        coder.notes(problem_from_row(row, "row"))[1] == "limits: 6 s of processor time for all tests of a run, 512 MB"
    )


def test_machine_with_less_memory_lowers_the_limit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    class Recording:
        kind, limits = "recording", Limits()

        def run(self, *_: object, memory_mb: int | None = None, **__: object) -> Any:
            asked.append(memory_mb)
            raise RuntimeError

        def self_test(self) -> dict[str, bool]:
            return {}

    monkeypatch.setattr(task, "total_memory", lambda: 2 << 30)
    coder, chat = CodeTask(Recording()), object()
    assert coder.warnings(chat) == ()  # type: ignore[arg-type]
    coder.rows = [lcb([("1", "1")])]
    assert "allows 4,096 MB for a program; this machine has 2,048 MB" in coder.warnings(chat)[0]  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        coder.grade(coder.rows[0], "```python\nx\n```")
    assert asked == [2048]


EVERYTHING = """
def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
@cache
def endless(n): return sorted([n, n], key=lambda n: endless(n + 1))
match input():
    case "names": print(deepcopy([ascii_lowercase[:2]]), bisect.bisect_left([1, 2], 2), mean([1, 3]), pow(2, 3, 5))
    case "deep": print(deep(40_000))
    case "endless":
        try: endless(0)
        except RecursionError: print("stopped")
    case "memory": print(len(bytearray(700 << 20)) >> 20)
    case "digits": print(len(str(10**5000)))
    case "ratio": print(6 / 2)
"""


@needs_bwrap
def test_program_has_the_judges_imports_recursion_memory_and_digits(box: Sandbox) -> None:
    wanted = {
        "names": "['ab'] 1 2 3",
        "deep": "40000",
        "endless": "stopped",
        "memory": "700",
        "digits": "5001",
        "ratio": "3",
    }
    assert graded(box, lcb(list(wanted.items())), EVERYTHING) == Feedback(1.0, True, "", "pass")


@needs_bwrap
def test_tuple_is_a_list_and_a_key_is_text_for_contest_rows(box: Sandbox) -> None:
    turned = "class Solution:\n    def turn(self, x): return x[1], x[0]"
    assert graded(box, lcb([("[1,2]", "[2,1]"), ("[3,4]", "[4,3]")], "turn"), turned).success
    wrapped = apps_problem([[1], [2]], [[{"1": 2}], {"2": 2}], "f")
    assert graded(box, wrapped, "def f(x): return {x: 2}").success
    assert not graded(box, wrapped, "def f(x): return {x + 1: 2}").success


BURN = """import time
def f(n):
    end = time.process_time() + n / 100
    while time.process_time() < end: pass
    return n
"""


@needs_bwrap
def test_every_test_has_its_own_time(box: Sandbox) -> None:
    row = {
        "id": "f",
        "statement": "f",
        "entry": "f",
        "tests": [{"args": [40 + n], "expected": 40 + n} for n in range(4)],
    }
    assert graded(box, problem_from_row({**row, "test_seconds": 1}, "row"), BURN).success
    late = {
        **row,
        "tests": [{"args": [1], "expected": 1, "public": True}, {"args": [999], "expected": 1, "public": True}],
    }
    said = graded(box, problem_from_row({**late, "test_seconds": 0.2}, "row"), BURN)
    assert (said.kind, said.text) == ("timeout", "Time Limit Exceeded\nInput: f(999)")


@needs_bwrap
def test_sleeping_test_ends_by_its_own_clock(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_PATIENCE", 0.5)
    row = {"id": "f", "statement": "f", "entry": "f", "tests": [{"args": [n], "expected": n} for n in range(60)]}
    problem = problem_from_row({**row, "test_seconds": 1}, "row")
    assert graded(box, problem, "import time\ndef f(n): time.sleep(99)").kind == "timeout"


@needs_bwrap
def test_futures_of_the_harness_do_not_reach_programs(box: Sandbox) -> None:
    row = {"id": "f", "statement": "f", "entry": "f", "tests": [{"args": [1], "expected": True, "public": True}]}
    eager = "def f(x: int): return f.__annotations__['x'] is int"
    assert graded(box, problem_from_row(row, "row"), eager).success
    said = graded(box, problem_from_row(row, "row"), "def f(a: Vector) -> Matrix: return True")
    assert (said.kind, "NameError: name 'Vector' is not defined" in said.text) == ("error", True)
    inside = "def g(x: int): pass\nassert g.__annotations__['x'] is int and h.__annotations__['x'] is int"
    coded = {**row, "preamble": "def h(x: int): pass", "tests": [{"code": inside}]}
    assert graded(box, problem_from_row(coded, "row"), eager).success


MBPP = {
    "task_id": 9001,
    "text": "Write a class Pair and total.",
    "code": "class Pair:\n def __init__(s,a,b): s.a=a; s.b=b\ndef total(p): return p.a+p.b",
    "test_setup_code": "import math\nTWO = 2\np = Pair(TWO, 3)\nq = p",
    "test_list": ["assert total(p) == 5", "assert total(q) == 5"],
}


def test_setup_is_split_by_the_names_that_only_the_answer_defines() -> None:
    private = mbpp(MBPP, "row").private
    assert (private["preamble"], private["setup"]) == ("import math\nTWO = 2", "p = Pair(TWO, 3)\nq = p")
    own = "class Node:\n    x = [y for y in 'ab']\nroot = Node()"
    private = mbpp({**MBPP, "test_setup_code": own, "test_imports": ["import re"]}, "row").private
    assert (private["preamble"], private["setup"]) == (f"{own}\nimport re", "")


@needs_bwrap
def test_setup_that_uses_the_answers_classes_runs_after_it(box: Sandbox) -> None:
    assert graded(box, mbpp(MBPP, "row"), MBPP["code"]).success
    needs = "AREA = math.pi * TWO\n" + MBPP["code"]
    assert graded(box, mbpp(MBPP, "row"), needs).success
    assert "NameError" in graded(box, mbpp(MBPP, "row"), "def total(p): return 5").text
