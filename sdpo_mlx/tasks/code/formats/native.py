"""Rows of programming problems, checked field by field.

One JSON object a line:

    {"id": "sum-even", "statement": "Write ...", "entry": "sum_even", "split": "train", "level": 1,
     "tests": [{"args": [[1, 2, 4]], "expected": 6, "public": true}, ...]}

- `id`, `statement`: text. `entry`: the function's name, needed by functional tests.
- `tests`: at least one, each of a `kind` (when missing, told by its fields):
  `functional`: `args` (list), `expected`; `stdin`: `input`, `output`; `code`: `code`, Python that asserts and
  runs after the answer in its own process, which is weaker: a hostile answer can defeat it.
  `public: true` lets its input and expected value be quoted in feedback; all tests decide.
  A functional test may name `alternatives`, a list of values of which each is as right as `expected`.
- optional: `preamble` (Python that runs before the answer in the same module, such as imports), `split`
  ("train", "held_out"), `family`, `level`, `tolerance` (number, for floats), `unordered`
  (true: the order of the outermost list does not count). Both also a test at a time.
- optional: `reference`, a right answer (`references.py`); a program without a fence gets one.
- optional in a test: `equality`, for tests that were assertions: how `code_values.EQUALITIES` compare,
  where `python` means `==`. Without it type and value must agree.
- values that JSON lacks: see `harness.py` (`{"$tuple": [1, 2]}`, `{"$set": [...]}`, `{"$int": "0xff"}`, ...).
- what counts as equal, in values and in printed text: the rules at the top of `code_values.py`.
"""

from __future__ import annotations

import ast
import json
import keyword
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.code.compare import EQUALITIES
from sdpo_mlx.tasks.code.harness import decode
from sdpo_mlx.tasks.references import checked
from sdpo_mlx.types import Message, Problem

RESULTS_CAP = 60_000  # bytes that the results of all tests of one run may take
_FIELDS = {"functional": ("args", "expected"), "stdin": ("input", "output"), "code": ("code",)}
_TYPES: dict[str, type] = {"args": list, "input": str, "output": str, "code": str}
_ROW_KEYS = {"id", "statement", "entry", "tests", "split", "family", "level", "unordered", "tolerance", "preamble"}
_ROW_KEYS |= {"reference"}
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
    unknown = sorted(map(str, set(row) - _ROW_KEYS))
    if unknown:
        fix = f"the fields are {', '.join(sorted(_ROW_KEYS))}"
        raise DataError(f"unknown field {unknown[0]!r}", where=where, fix=fix)
    identity, statement = _text({"id": str(row.get("id", ""))}, "id", where), _text(row, "statement", where)
    if row.get("split", "train") not in ("train", "held_out"):
        raise DataError("split is neither train nor held_out", where=where, fix="write one of the two")
    entry = row.get("entry")
    if entry is not None and not (isinstance(entry, str) and entry.isidentifier() and not keyword.iskeyword(entry)):
        raise DataError("entry is no function name", where=where, fix="write a plain name such as `solve`")
    reference, tests = checked(row, where), _tests(row, where)
    if entry is None and any(test["kind"] == "functional" for test in tests):
        raise DataError("entry is missing", where=where, fix="functional tests need the function's name")
    private = {
        "entry": entry,
        "preamble": _preamble(row.get("preamble", ""), where),
        "tests": tests,
        "split": row.get("split", ""),
        "level": row.get("level"),
    }
    message: Message = {"role": "user", "content": statement.rstrip() + _format_line(entry, tests)}
    family = str(row.get("family", ""))
    return Problem(id=identity, messages=(message,), private=private, family=family, reference=reference)


def _preamble(code: Any, where: str) -> str:
    """Python that can be read, at least."""
    try:
        ast.parse(code)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        raise DataError("preamble is no Python", where=where, fix="write imports and functions, as text") from None
    return str(code)


def _format_line(entry: str | None, tests: tuple[dict[str, Any], ...]) -> str:
    if all(test["kind"] == "stdin" for test in tests):
        return _PROGRAM_FORMAT
    return _FUNCTION_FORMAT.replace("{entry}", entry) if entry else _CODE_FORMAT


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} is missing or no text", where=where, fix=f"give every row a {name}")
    return value


def _tests(row: dict[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    rows = row.get("tests")
    if not isinstance(rows, list) or not rows:
        raise DataError("tests is missing or empty", where=where, fix="give every row at least one test")
    tests = tuple(_test(test, row, f"{where}, test {number}") for number, test in enumerate(rows, 1))
    cap = RESULTS_CAP // len(tests)
    for number, test in enumerate(tests, 1):
        if len(json.dumps(test.get("expected", test.get("output", "")))) * 2 + 200 > cap:
            fix = f"keep it under {(cap - 200) // 2} bytes, or give fewer tests"
            raise DataError("the expected value is too long to come back", where=f"{where}, test {number}", fix=fix)
    return tests


def _test(test: Any, row: dict[str, Any], where: str) -> dict[str, Any]:
    """One test with its kind and settings filled in."""
    if not isinstance(test, dict):
        raise DataError("a test is no object", where=where, fix='write {"args": [...], "expected": ...}')
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
    """Flags, tolerance and tagged values mean something."""
    if not isinstance(test["public"], bool) or test["unordered"] not in (None, True, False):
        raise DataError("public and unordered are true or false", where=where, fix="write one of the two")
    if test.get("equality", EQUALITIES[0]) not in EQUALITIES:
        raise DataError("equality is unknown", where=where, fix=f"write one of {', '.join(EQUALITIES)}")
    tolerance = test["tolerance"]
    if tolerance is not None and not (type(tolerance) in (int, float) and tolerance >= 0):
        raise DataError("tolerance is no number from 0", where=where, fix="write for example 1e-6")
    try:
        decode([test.get("args"), test.get("expected"), *test.get("alternatives", [])])
    except (ValueError, TypeError, KeyError, RecursionError):
        fix = 'write for example {"$tuple": [1, 2]}'
        raise DataError("a tagged value cannot be read", where=where, fix=fix) from None
