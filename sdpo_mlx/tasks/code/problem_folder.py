"""Read one problem from a folder, as a native row (`formats/native.py`).

    statement.md          what the model reads
    tests.py              assertions about one function, such as `assert add(1, 2) == 3`
    cases/NAME.in, .out   or: what a program reads and what it must print

The first half of the tests is public, as in public data sets: the feedback quotes them, all decide.
"""

from __future__ import annotations

import ast
import builtins
from pathlib import Path
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.code.formats.assertions import assert_tests
from sdpo_mlx.tasks.code.formats.native import Test, halved

STATEMENT, TESTS, CASES = "statement.md", "tests.py", "cases"
_LAYOUT = f"a problem's folder holds {STATEMENT} and either {TESTS} or {CASES}/NAME.in with NAME.out"
_LARGEST = 8_000_000  # bytes of one file


def is_problem(folder: Path) -> bool:
    """Return whether a folder contains a problem."""
    return (folder / STATEMENT).is_file()


def row_of(folder: Path) -> dict[str, Any]:
    """Return the problem as a native row; its id is the folder's name. Raises DataError that names the file."""
    row = {"id": folder.resolve().name, "statement": _text(folder / STATEMENT), "split": "train"}
    if (folder / TESTS).is_file():
        return {**row, **_assertions(folder / TESTS)}
    tests: list[Test] = [
        {"kind": "stdin", "input": _text(file), "output": _text(file.with_suffix(".out"))}
        for file in sorted((folder / CASES).glob("*.in"))
    ]
    if not tests:
        raise DataError("the problem has no tests", where=str(folder), fix=_LAYOUT)
    return {**row, "tests": halved(tests)}


def _assertions(file: Path) -> dict[str, Any]:
    """Return every assertion as a test; other code runs before the answer."""
    try:
        body = ast.parse(_text(file)).body
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise DataError("tests are not Python", where=f"{file}{line}", fix="write assertions") from error
    asserts = [node for node in body if isinstance(node, ast.Assert)]
    called = [each.func for node in asserts for each in ast.walk(node.test) if isinstance(each, ast.Call)]
    names = [func.id for func in called if isinstance(func, ast.Name)]
    entry = next((name for name in names if name not in dir(builtins)), None)
    if entry is None:
        fix = "write for example: assert add(1, 2) == 3"
        raise DataError("no assertion calls a function", where=str(file), fix=fix)
    before = "\n".join(ast.unparse(node) for node in body if not isinstance(node, ast.Assert))
    tests = [test for node in asserts for test in assert_tests(ast.unparse(node), entry)]
    return {"entry": entry, "preamble": before, "tests": halved(tests)}


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _LARGEST:
            raise DataError(f"the file is larger than {_LARGEST // 1_000_000} MB", where=str(file))
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the file cannot be read as text", where=str(file), fix=_LAYOUT) from error
