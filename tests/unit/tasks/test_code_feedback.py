"""What a failed program is told: where it differs, what it printed; the same every time, and nothing hidden."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdpo_mlx.config import SandboxConfig, TaskConfig
from sdpo_mlx.sandbox.base import Sandbox
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.tasks.code.compare import same, same_output
from sdpo_mlx.tasks.code.diff import output_difference, value_difference
from sdpo_mlx.tasks.code.formats.native import problem_from_row
from sdpo_mlx.tasks.code.task import CodeTask

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap")
HIDDEN = ("8712931", "4450287")  # stand only in a hidden test: its input and its expected value
small = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab ", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox(SandboxConfig(kind="bubblewrap", seconds=3.0))


def row(expected: Any, args: list[Any] | None = None) -> dict[str, Any]:
    tests = [
        {"args": args or [[3, 1, 2]], "expected": expected, "public": True},
        {"args": [int(HIDDEN[0])], "expected": int(HIDDEN[1]), "public": False},
    ]
    return {"id": "row", "statement": "Write f(x).", "entry": "f", "tests": tests}


def said(box: Sandbox, problem: dict[str, Any], code: str, mode: str = "public") -> str:
    task = CodeTask(box, TaskConfig(feedback=mode))
    return task.grade(problem_from_row(problem, "row"), f"```python\n{code}\n```").text


@pytest.mark.parametrize(
    ("expected", "got", "text"),
    [
        ([1, 7, 3], [1, 9, 3], "first difference at index 1: expected 7, got 9"),
        ([1, 2], [1], "expected 2 items, got 1: 2 at index 1 is missing"),
        ([1], [1, 5], "expected 1 item, got 2: 5 at index 1 should not be there"),
        ([[1], [2, 3]], [[1], [2, 4]], "first difference at index 1, index 1: expected 3, got 4"),
        ([1, 2], (1, 2), "expected a list, got a tuple with the same items"),
        ([1, 2], None, "expected a list, got None: the function returned no value"),
        ([1, 2], [1, 2.0], "first difference at index 1: expected 2, got 2.0 (expected an int, got a float)"),
        ({"a": 1}, {"a": 2}, "first difference at key 'a': expected 1, got 2"),
        ({"a": 1, "b": 2}, {"a": 1, "c": 2}, "missing key: 'b'; unexpected key: 'c'"),
        ({1, 2}, {2, 3}, "missing item: 1; unexpected item: 3"),
        ("hello", "hallo", "first difference at position 1: expected 'e', got 'a'"),
        ("ab", "abc", "the text goes on too long: 'c' at position 2 should not be there"),
        ("abc", "ab", "the text ends too early: 'c' is missing at position 2"),
        ("Ab", "ab", "only upper and lower case differ"),
        ("a b", "a  b", "only the white space differs"),
        (3, 4, ""),
    ],
)
def test_first_difference_is_named(expected: Any, got: Any, text: str) -> None:
    assert value_difference(expected, got) == text


def test_items_are_named_where_order_is_free() -> None:
    assert value_difference([1, 2, 2], [2, 1, 3], unordered=True) == "missing item: 2; unexpected item: 3"


@pytest.mark.parametrize(
    ("expected", "got", "text"),
    [
        ("a\nb\n", "a\nc\n", "first difference in line 2: expected 'b', got 'c'"),
        ("a b", "a  b", "first difference in line 1: expected 'a b', got 'a  b' (only the spacing differs)"),
        ("Yes", "YES", "first difference in line 1: expected 'Yes', got 'YES' (only upper and lower case differ)"),
        ("a\nb", "a", "expected 2 lines, got 1: line 2 'b' is missing"),
        ("a", "a\nb", "expected 1 line, got 2: line 2 'b' should not be there"),
        ("a", " \n", "nothing was printed"),
    ],
)
def test_first_line_that_differs_is_named(expected: str, got: str, text: str) -> None:
    assert output_difference(expected, got) == text


@given(small, small)
def test_values_inside_a_container_that_differ_always_get_a_sentence(expected: Any, got: Any) -> None:
    if not same([expected], [got]):
        assert value_difference([expected], [got])


@given(st.text("ab \n", max_size=6), st.text("ab \n", max_size=6))
def test_texts_that_differ_always_get_a_sentence(expected: str, got: str) -> None:
    if not same_output(expected, got):
        assert output_difference(expected, got)


@needs_bwrap
def test_wrong_value_is_told_with_difference_changed_argument_and_prints(box: Sandbox) -> None:
    text = said(box, row([1, 2, 3]), "def f(x):\n    print('sorting', x)\n    x.sort()")
    assert text == (
        "Test Case 1: Wrong Answer\nInput: f([3, 1, 2])\nOutput: None\nExpected: [1, 2, 3]\n"
        "Expected a list, got None: the function returned no value.\n"
        "The call changed its argument 1 in place.\nPrinted: sorting [3, 1, 2]"
    )


@needs_bwrap
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def f(x, y):\n    return x", "  line 1 in f: def f(x, y):\nInput: f([3, 1, 2])"),
        ("def g(x):\n    return x", "NameError: the answer defines no function named f; it defines g\n"),
        ("def f(x):\n    return 1j", "Output: a value of the type complex"),
        ("def f(x):\n    return b'1'", "Output: a value of the type bytes"),
        ("def f(x):\n    yield 1", "Output: a value of the type generator"),
        ("def f(x):\n    return 10**5000", "Output: 10000000000000000000...00000000000000000000 (5001 digits)"),
        ("def f(x):\n    print('before')\n    return 1 / 0", "Input: f([3, 1, 2])\nPrinted: before"),
        ("import sys\ndef f(x):\n    print('seen', file=sys.stderr)", "Printed: seen"),
    ],
)
def test_failure_says_what_is_needed_to_mend_it(box: Sandbox, code: str, text: str) -> None:
    assert text in said(box, row([1, 2, 3]), code)


@needs_bwrap
def test_program_that_fails_on_the_way_is_told_what_it_had_printed(box: Sandbox) -> None:
    problem = {"id": "p", "statement": "Print.", "tests": [{"input": "1\n", "output": "2\n", "public": True}]}
    text = said(box, problem, "print('so far')\n1 / 0")
    assert text.endswith("  line 2: 1 / 0\nInput: 1\nPrinted: so far")


@needs_bwrap
def test_flood_of_prints_neither_ends_an_answer_nor_fills_its_feedback(box: Sandbox) -> None:
    flood = (
        "import os, sys\ndef f(x):\n    for _ in range(2000): print('y' * 5000); print('z' * 5000, file=sys.stderr)\n"
    )
    flood += "    os.write(1, b'q' * 500000); os.write(2, b'q' * 500000)\n    return "
    assert said(box, {**row([1]), "tests": row([1])["tests"][:1]}, flood + "[1]") == ""
    text = said(box, row([1]), flood + "[2]")
    assert "first difference at index 0: expected 1, got 2".lower() in text.lower()
    assert len(text) < 700


@needs_bwrap
def test_huge_integers_are_judged_exactly(box: Sandbox) -> None:
    problem = row({"$int": hex(10**5000)})
    problem["tests"].pop()
    assert said(box, problem, "def f(x): return 10 ** 5000") == ""
    assert "00001 (5001 digits)" in said(box, problem, "def f(x): return 10 ** 5000 + 1")


@needs_bwrap
@pytest.mark.parametrize("mode", ["error_only", "none"])
def test_modes_without_cases_quote_neither_values_nor_prints(box: Sandbox, mode: str) -> None:
    text = said(box, row([1, 2, 3]), "def f(x):\n    print('noise', x)\n    return x", mode)
    assert text == ("Wrong Answer" if mode == "error_only" else "")


ENDINGS = (
    "return x",
    "return [1, 2, 3] if x == [3, 1, 2] else x",
    "print(x, object()); return {'b', 'a', 'c'}",
    "raise ValueError(x, object(), {'b', 'a'})",
    "return [][0]",
    "import os; print(os.getcwd(), __name__); return f",
    "return [1, 2, 3] if x == [3, 1, 2] else str(x)[99]",
    "return [1, 2, 3] if x == [3, 1, 2] else print(x)",
)


@needs_bwrap
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ENDINGS), st.integers(0, 3))
def test_same_answer_gets_the_same_bytes_and_nothing_hidden(box: Sandbox, ending: str, blank: int) -> None:
    code = "\n" * blank + f"def f(x):\n    {ending}"
    first, second = (said(box, row([1, 2, 3]), code) for _ in range(2))
    assert first == second
    assert first
    assert not [marker for marker in HIDDEN if marker in first]
    assert "/tmp" not in first
    assert "<answer>" not in first.replace("in <answer>", "")
