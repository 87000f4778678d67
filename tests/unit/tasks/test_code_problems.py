"""The shipped Python problems: well-formed, solvable as told, and each with a bug that the tests catch."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import json
import math
import re
import sys
from collections import Counter
from itertools import combinations, permutations
from typing import Any

import pytest
from code_problems import ROWS, SOLUTIONS, SPLITS, TOO_SLOW, Row

COMMON = (
    "a an the of to in and or is are it its that as with by for from on if be at no not returns return write function "
    "string list integers integer number numbers print each empty every all one two same"
)
LEVELS = {"one_liner", "easy", "medium", "interview"}
REQUIRED = {"id", "statement", "tests", "split", "family", "level"}
OPTIONAL = {"entry", "tolerance", "unordered"}

Case = dict[str, Any]


each_row = pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])


def slug(row: Row) -> str:
    return str(row["id"]).removeprefix("code/")


def solution(row: Row, kind: str = "right") -> str:
    return SOLUTIONS[slug(row), kind]


def call(source: str, entry: str, args: list[Any]) -> Any:
    namespace: dict[str, Any] = {"__name__": "solution"}
    exec(compile(source, "solution", "exec"), namespace)
    return namespace[entry](*copy.deepcopy(args))


def run_program(source: str, text: str) -> str:
    out, before = io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(text)
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(source, "solution", "exec"), {"__name__": "__main__"})
    finally:
        sys.stdin = before
    return out.getvalue()


def equal(got: Any, want: Any, tolerance: float) -> bool:
    """As JSON values: a bool is no number, a tuple no list; floats within the tolerance."""
    if isinstance(want, bool) or isinstance(got, bool) or isinstance(want, str) or want is None:
        return type(got) is type(want) and bool(got == want)
    if isinstance(want, list):
        same = isinstance(got, list) and len(got) == len(want)
        return same and all(equal(a, b, tolerance) for a, b in zip(got, want, strict=True))
    if isinstance(want, dict):
        same = isinstance(got, dict) and got.keys() == want.keys()
        return same and all(equal(got[key], want[key], tolerance) for key in want)
    return isinstance(got, int | float) and math.isclose(got, want, rel_tol=tolerance, abs_tol=tolerance)


def passes(source: str, row: Row, case: Case) -> bool:
    if case.get("kind") == "stdin":
        return run_program(source, case["input"]).split("\n") == case["output"].split("\n")
    got, want = call(source, row["entry"], case["args"]), case["expected"]
    if row.get("unordered") and isinstance(got, list):
        got, want = sorted(got), sorted(want)
    return equal(got, want, row.get("tolerance", 0.0))


def survives(source: str, row: Row, case: Case) -> bool:
    """Whether a buggy program passes one case; a crash is a failure."""
    try:
        return passes(source, row, case)
    except Exception:
        return False


@each_row
def test_row_is_well_formed_in_the_documented_format(row: Row) -> None:
    assert set(row) >= REQUIRED
    assert set(row) <= REQUIRED | OPTIONAL
    assert re.fullmatch(r"code/[a-z0-9_]+", row["id"])
    assert row["level"] in LEVELS
    assert row["split"] in {"train", "held_out"}
    stdin = [case.get("kind") == "stdin" for case in row["tests"]]
    assert all(stdin) if "entry" not in row else not any(stdin)
    keys = {"kind", "input", "output", "public"} if stdin[0] else {"args", "expected", "public"}
    assert all(set(case) == keys and isinstance(case["public"], bool) for case in row["tests"])


@each_row
def test_tests_have_a_public_and_a_larger_private_half(row: Row) -> None:
    public = sum(case["public"] for case in row["tests"])
    assert public in {2, 3}
    assert len(row["tests"]) - public >= 3
    assert len(row["tests"]) >= 6
    inputs = [json.dumps(case.get("args", case.get("input"))) for case in row["tests"]]
    assert len(set(inputs)) == len(inputs), "a case is there twice"


@each_row
def test_worked_example_of_the_statement_is_the_first_public_test(row: Row) -> None:
    first = row["tests"][0]
    assert first["public"]
    if "entry" not in row:
        shown = f"Example input:\n{first['input'].strip()}\n\nExample output:\n{first['output'].strip()}"
        assert row["statement"].endswith(shown)
        return
    found = re.search(r"^Example: `(.+)` returns `(.+)`\.$", row["statement"], re.MULTILINE)
    assert found
    made = ast.parse(found[1], mode="eval").body
    assert isinstance(made, ast.Call)
    assert ast.unparse(made.func) == row["entry"]
    assert [ast.literal_eval(arg) for arg in made.args] == first["args"]
    assert equal(ast.literal_eval(found[2]), first["expected"], row.get("tolerance", 0.0))


@each_row
def test_statement_names_the_signature_of_the_reference(row: Row) -> None:
    if "entry" not in row:
        assert row["statement"].startswith("Write a program that ")
        return
    defined = {node.name: node for node in ast.parse(solution(row)).body if isinstance(node, ast.FunctionDef)}
    names = ", ".join(argument.arg for argument in defined[row["entry"]].args.args)
    assert row["statement"].startswith(f"Write a function `{row['entry']}({names})` that ")


@each_row
def test_reference_passes_every_test(row: Row) -> None:
    source = solution(row)
    assert [case for case in row["tests"] if not passes(source, row, case)] == []


@each_row
@pytest.mark.parametrize("kind", ["wrong", "wrong2"])
def test_wrong_solution_passes_a_public_test_and_fails_another(row: Row, kind: str) -> None:
    """The typical bug is plausible (something passes) and is caught (something does not)."""
    if kind == "wrong2" and row["id"] in TOO_SLOW:
        pytest.skip("does not end; the sandbox stops it in a test of its own")
    source = solution(row, kind)
    verdicts = [survives(source, row, case) for case in row["tests"]]
    assert any(ok for ok, case in zip(verdicts, row["tests"], strict=True) if case["public"])
    assert not all(verdicts)


@each_row
def test_wrong_solutions_fail_in_different_ways(row: Row) -> None:
    """Two programs that are wrong alike would be one."""
    if row["id"] in TOO_SLOW:
        return
    first, second = ([failing(solution(row, kind), row, case) for case in row["tests"]] for kind in ("wrong", "wrong2"))
    assert first != second


def failing(source: str, row: Row, case: Case) -> str:
    """How a program fails one case: not at all, by its value, or by an exception."""
    try:
        return "" if passes(source, row, case) else "wrong"
    except Exception as error:
        return type(error).__name__


def test_public_tests_catch_nearly_every_wrong_solution() -> None:
    """Feedback comes from the public half, so the typical bug should show there; one hides on purpose."""
    hidden = [
        row["id"]
        for row in ROWS
        if all(survives(solution(row, "wrong"), row, case) for case in row["tests"] if case["public"])
    ]
    assert hidden == ["code/is_leap_year"]


def test_every_problem_has_its_solutions_and_no_other_is_stored() -> None:
    assert SOLUTIONS.keys() == {(slug(row), kind) for row in ROWS for kind in ("right", "wrong", "wrong2")}


def test_problems_are_distinct() -> None:
    assert len(ROWS) >= 152
    for field in ("id", "statement"):
        assert len({row[field] for row in ROWS}) == len(ROWS)


def words(row: Row) -> Counter[str]:
    """The telling words of a statement, without its example."""
    told = row["statement"].partition("\n\nExample")[0].lower()
    return Counter(word for word in re.findall(r"[a-z]+", told) if word not in COMMON.split())


def test_no_two_statements_are_alike() -> None:
    bags = {row["id"]: words(row) for row in ROWS}
    alike = [
        (one, other)
        for one, other in combinations(bags, 2)
        if (bags[one] & bags[other]).total() > 0.6 * (bags[one] | bags[other]).total()
    ]
    assert alike == []


def shape(value: Any) -> Any:
    """The types of an argument, down to the first element."""
    return (type(value).__name__, shape(value[0]) if isinstance(value, list) and value else None)


def small(value: Any) -> bool:
    """Whether no function can take long over it."""
    if isinstance(value, list):
        return len(value) <= 12 and all(map(small, value))
    return not isinstance(value, int) or abs(value) <= 10_000


def survives_briefly(source: str, row: Row, case: Case) -> bool:
    """As `survives`, but a program that runs for many lines has failed: it was made for other inputs."""
    left = 5_000

    def count(*_: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("too long")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        return survives(source, row, case)
    finally:
        sys.settrace(before)


def test_no_two_problems_ask_for_the_same_function() -> None:
    """On what both take, a reference never gives all the answers that another problem expects."""
    functions = [(row, solution(row), [*map(shape, row["tests"][0]["args"])]) for row in ROWS if "entry" in row]
    alike = []
    for (row, _, takes), (other, source, takes_too) in permutations(functions, 2):
        cases = [case for case in row["tests"] if all(map(small, case["args"]))]
        asked = {**row, "entry": other["entry"]}
        if takes == takes_too and len(cases) > 2 and all(survives_briefly(source, asked, case) for case in cases):
            alike.append((row["id"], other["id"]))
    assert alike == []


def test_splits_hold_every_level_and_enough_easy_problems() -> None:
    splits = Counter(row["split"] for row in ROWS)
    assert 0.3 <= splits["held_out"] / len(ROWS) <= 0.4
    levels = Counter((row["split"], row["level"]) for row in ROWS)
    for split, easy in (("train", 50), ("held_out", 27)):
        assert all(levels[split, level] for level in LEVELS)
        assert levels[split, "one_liner"] + levels[split, "easy"] >= easy
    assert {row["split"] for row in ROWS if "entry" not in row} == {"train", "held_out"}


def test_no_family_stands_in_both_splits() -> None:
    families = {split: {row["family"] for row in ROWS if row["split"] == split} for split in SPLITS}
    assert not families["train"] & families["held_out"]
    assert min(map(len, families.values())) >= 6
