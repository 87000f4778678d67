"""Rows of programming problems, checked field by field.

One JSON object a line:

    {"id": "sum-even", "statement": "Write ...", "entry": "sum_even", "split": "train", "level": 1,
     "tests": [{"args": [[1, 2, 4]], "expected": 6, "public": true}, ...]}

- `id`, `statement`: text. `entry`: the function's name, needed by functional tests.
- `tests`: at least one, each of a `kind` (by default determined by its fields):
  `functional`: `args` (list), `expected`; `stdin`: `input`, `output`; `code`: `code`, Python that asserts and
  runs after the answer in its own process, which is weaker: a hostile answer can defeat it.
  `public: true` lets its input and expected value be quoted in feedback; all tests decide.
  A functional test may name `alternatives`, a list of values of which each is as right as `expected`.
- optional: `preamble` (Python that runs before the answer in the same module, such as imports), `setup` (the same
  after the answer, before the tests, so that it may use what the answer defines), `split` ("train", "held_out"),
  `family`, `level`, `tolerance` (number, for floats), `unordered` (true: the order of the outermost list does not
  count). The last two also a test at a time.
- optional: `reference`, a right answer (`references.py`); a program without a fence gets one.
- optional in a test: `equality`, for tests that were assertions or compare as a public set's judge does: see
  `compare.EQUALITIES`, where `python` means `==`, and `OUTPUT_EQUALITIES` for `stdin`. Without it type and value must
  agree.
- optional: `test_seconds`, processor time that each test has for itself, instead of `sandbox.seconds` for all tests
  (`sandbox.total_seconds` bounds their sum); `memory_mb`, the least address space of a run.
- values that JSON lacks: see `harness.py` (`{"$tuple": [1, 2]}`, `{"$set": [...]}`, `{"$int": "0xff"}`, ...).
- what counts as equal, in values and in printed text: the rules at the top of `code/compare.py`.
"""

from __future__ import annotations

import ast
import json
import keyword
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.code.compare import EQUALITIES, OUTPUT_EQUALITIES
from sdpo_mlx.tasks.code.harness import decode
from sdpo_mlx.tasks.data.fields import list_of, only_fields, split_of, text_of
from sdpo_mlx.tasks.references import checked
from sdpo_mlx.types import Message, Problem

Test = dict[str, Any]
RESULTS_CAP = 60_000  # bytes that the results of all tests of one run may take
MOST_INPUT = 4_000_000  # characters of input that the tests of one problem may have together
_FIELDS = {"functional": ("args", "expected"), "stdin": ("input", "output"), "code": ("code",)}
_TYPES: dict[str, type] = {"args": list, "input": str, "output": str, "code": str}
_ROW_KEYS = {"id", "statement", "entry", "tests", "split", "family", "level", "unordered", "tolerance", "preamble"}
_ROW_KEYS |= {"reference", "setup", "test_seconds", "memory_mb"}
_FUNCTION_FORMAT = (
    "\n\nAnswer with one block that starts with ```python and ends with ```; it defines the function `{entry}`."
)
_PROGRAM_FORMAT = (
    "\n\nAnswer with one block that starts with ```python and ends with ```; "
    "it is a whole program that reads standard input and prints the result."
)
_CODE_FORMAT = "\n\nAnswer with one block that starts with ```python and ends with ```."


def problem_from_row(row: dict[str, Any], where: str) -> Problem:
    """One checked problem; `private` holds entry, preamble, split, level, tests (with kind, public ...).

    Raises DataError that names `where`.
    """
    only_fields(row, _ROW_KEYS, where)
    identity, statement = text_of({"id": str(row.get("id", ""))}, "id", where), text_of(row, "statement", where)
    entry = row.get("entry")
    if entry is not None and not (isinstance(entry, str) and entry.isidentifier() and not keyword.iskeyword(entry)):
        raise DataError("entry is not a function name", where=where, fix="write a plain name such as `solve`")
    reference, tests = checked(row, where), _tests(row, where)
    if entry is None and any(test["kind"] == "functional" for test in tests):
        raise DataError("entry is missing", where=where, fix="functional tests need the function's name")
    private = {
        "entry": entry,
        "preamble": _python(row, "preamble", where),
        "setup": _python(row, "setup", where),
        "test_seconds": _limit(row, "test_seconds", (int, float), where),
        "memory_mb": _limit(row, "memory_mb", (int,), where),
        "tests": tests,
        "split": split_of(row, where),
        "level": row.get("level"),
    }
    function_format = _FUNCTION_FORMAT.replace("{entry}", entry) if entry else _CODE_FORMAT
    ending = _PROGRAM_FORMAT if all(test["kind"] == "stdin" for test in tests) else function_format
    message: Message = {"role": "user", "content": statement.rstrip() + ending}
    family = str(row.get("family", ""))
    return Problem(id=identity, messages=(message,), private=private, family=family, reference=reference)


def _python(row: dict[str, Any], name: str, where: str) -> str:
    """Return a field that is a program, blank if it is missing. Raises DataError."""
    try:
        ast.parse(row.get(name, ""))
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        raise DataError(f"{name} is not Python", where=where, fix="write imports and functions, as text") from None
    return str(row.get(name, ""))


def _limit(row: dict[str, Any], name: str, types: tuple[type, ...], where: str) -> Any:
    """Return a field that is a positive number, None if it is missing. Raises DataError."""
    value = row.get(name)
    if value is not None and not (type(value) in types and 0 < value < float("inf")):
        raise DataError(f"{name} is not a number above 0", where=where, fix="write one such as 6, or leave it out")
    return value


def _tests(row: dict[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    rows = list_of(row, "tests", where)
    tests = tuple(_test(test, row, f"{where}, test {number}") for number, test in enumerate(rows, 1))
    cap = RESULTS_CAP // len(tests)
    for number, test in enumerate(tests, 1):
        if _result_size(test) > cap:
            fix = f"keep it under {(cap - 200) // 2} bytes, or give fewer tests"
            raise DataError("the expected value is too long to come back", where=f"{where}, test {number}", fix=fix)
    return tests


def _test(test: Any, row: dict[str, Any], where: str) -> dict[str, Any]:
    """One test with its kind and settings filled in."""
    if not isinstance(test, dict):
        raise DataError("a test is not an object", where=where, fix='write {"args": [...], "expected": ...}')
    kind = test.get("kind") or next((k for k, names in _FIELDS.items() if names[0] in test), "")
    if kind not in _FIELDS:
        raise DataError("a test has no known kind", where=where, fix=f"kinds are {', '.join(_FIELDS)}")
    settings = {name: test.get(name, row.get(name)) for name in ("tolerance", "unordered")}
    checked = {"kind": kind, "public": test.get("public", False), **settings}
    checked |= {name: test[name] for name in ("equality", "alternatives") if name in test}
    for name in _FIELDS[kind]:
        if name not in test or not isinstance(test[name], _TYPES.get(name, object)):
            raise DataError(f"{name} is missing or of the wrong type", where=where, fix=f"a {kind} test needs it")
        checked[name] = test[name]
    _check_values(checked, where)
    return checked


def _check_values(test: dict[str, Any], where: str) -> None:
    """Check flags, tolerance and tagged values."""
    if not isinstance(test["public"], bool) or test["unordered"] not in (None, True, False):
        raise DataError("public and unordered are true or false", where=where, fix="write one of the two")
    known = OUTPUT_EQUALITIES if test["kind"] == "stdin" else EQUALITIES
    if test.get("equality", known[0]) not in known:
        raise DataError("equality is unknown", where=where, fix=f"write one of {', '.join(known)}")
    tolerance = test["tolerance"]
    if tolerance is not None and not (type(tolerance) in (int, float) and tolerance >= 0):
        raise DataError("tolerance is not a number from 0", where=where, fix="write for example 1e-6")
    try:
        decode([test.get("args"), test.get("expected"), *test.get("alternatives", [])])
    except (ValueError, TypeError, KeyError, RecursionError):
        fix = 'write for example {"$tuple": [1, 2]}'
        raise DataError("a tagged value cannot be read", where=where, fix=fix) from None


def _result_size(test: Test) -> int:
    """Return the most bytes that a test's result takes on its way back, its record included."""
    return 2 * len(json.dumps(test.get("expected", test.get("output", "")))) + 200


# ---- for the readers of public formats


def halved(tests: Sequence[Test]) -> list[Test]:
    """Return the first half public (at least one test), the rest hidden."""
    public = max(1, len(tests) // 2)
    return [{**test, "public": index < public} for index, test in enumerate(tests)]


def fitting(tests: Sequence[Test], where: str) -> list[Test]:
    """Return the tests whose results can come back from one run and whose inputs aren't too long together, in order.

    As many as possible are kept, so the longest go first. Raises DataError if none can stay.
    """
    sizes = [_result_size(test) for test in tests]
    order = sorted(range(len(tests)), key=lambda index: sizes[index])
    count = max((n for n in range(1, len(tests) + 1) if sizes[order[n - 1]] <= RESULTS_CAP // n), default=0)
    lengths = [len(json.dumps(test.get("args", test.get("input", "")))) for test in tests]
    kept, length = set[int](), 0
    for index in sorted(order[:count], key=lambda index: lengths[index]):
        length += lengths[index]
        if length > MOST_INPUT:
            break
        kept.add(index)
    if not kept:
        what = "no test is short enough to be run" if tests else "there are no tests"
        raise DataError(what, where=where, fix="leave the problem out")
    return [test for index, test in enumerate(tests) if index in kept]


def public_split(row: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the split of a public row as a field of ours, nothing if it has none. Raises DataError."""
    split = split_of(row, where)
    return {"split": split} if split else {}
