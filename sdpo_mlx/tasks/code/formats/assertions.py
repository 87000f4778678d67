"""Formats whose tests are assertions: HumanEval, MBPP, and the larger tests that EvalPlus made for both.

Assertions of a simple form become calls that are compared outside of the sandbox (`assert_parser.py`); a
problem with any other one keeps all of its test code, run beside the answer, as well.

- HumanEval: `task_id`, `prompt` (imports, functions that tests may need, head and docstring of the entry),
  `entry_point`, `test` (defines `check(candidate)`). What stands before the entry runs before every answer.
  Public are the assertions whose arguments the prompt itself shows in a call of the entry; where it shows
  none of them, the first half. Claims in docstrings are never tests: some published ones are wrong.
- MBPP: `task_id`, `text` or `prompt`, `test_list`, and perhaps `test_setup_code` or `test_imports`,
  `challenge_test_list`, `code`. What of the setup uses the answer's own names runs after the answer. The first half
  of `test_list` is public and quoted in the statement.
- HumanEval+ and MBPP+: the same fields, but `test` walks over literal `inputs` and `results`. Values are
  compared as there: equal in Python, floats within the tolerance that the call of `assertion` names, or 1e-6.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.code.assert_parser import functional_tests
from sdpo_mlx.tasks.code.formats.native import Test, fitting, halved, problem_from_row, public_split
from sdpo_mlx.tasks.code.harness import decode
from sdpo_mlx.tasks.data.fields import content_id, id_of, optional_text, text_of, texts_of
from sdpo_mlx.types import Problem

_CALL = re.compile(r"\b(?:assert\s+)?(?P<name>[A-Za-z_]\w*)\(")
_LONGEST_EXAMPLE = 2_000
# Only what `assertion` of EvalPlus asks of numpy, for interpreters that have none.
_NUMPY = """\
try:
    import numpy
except ImportError:
    import sys, types
    def _close(got, wanted, rtol=1e-7, atol=0.0):
        if isinstance(wanted, (list, tuple)):
            return len(got) == len(wanted) and all(_close(a, b, rtol, atol) for a, b in zip(got, wanted))
        return got == wanted or abs(got - wanted) <= atol + rtol * abs(wanted)
    def _assert_close(got, wanted, rtol=1e-7, atol=0.0):
        assert _close(got, wanted, rtol, atol), "values are not close"
    numpy = types.ModuleType("numpy")
    numpy.ndarray = type("ndarray", (), {})
    numpy.float64 = numpy.float32 = float
    numpy.allclose = _close
    numpy.testing = types.ModuleType("numpy.testing")
    numpy.testing.assert_allclose = _assert_close
    sys.modules["numpy"] = numpy
"""


def humaneval(row: Mapping[str, Any], where: str) -> Problem:
    """One row of HumanEval or HumanEval+. Raises DataError."""
    prompt, entry = text_of(row, "prompt", where), text_of(row, "entry_point", where)
    code = text_of(row, "test", where)
    _parsed(code, "test", where)
    before = _before(prompt, entry, where)
    whole = {"kind": "code", "code": f"{_needing(code)}\n\ncheck({entry})\n"}
    tests = _table_tests(code, entry)
    shown = [test["args"] for call in _shown_calls(prompt, entry) for test in _functional(f"assert {call}", entry)]
    if tests is None:
        tests, rest = _check_tests(code, entry)
        tests = [*tests, *([whole] if rest else [])]
    tests = fitting(tests, where)
    if any(test.get("args") in shown for test in tests if "args" in test):
        tests = [{**test, "public": "args" in test and test["args"] in shown} for test in tests]
    else:
        tests = halved(tests)
    statement = f"Complete this function, and write all of it:\n\n```python\n{prompt.rstrip()}\n```"
    ours = {"id": (id_of(row, "task_id") or content_id(prompt, 16)), "statement": statement, "family": "humaneval"}
    return problem_from_row(
        {**ours, **public_split(row, where), "entry": entry, "preamble": before, "tests": tests}, where
    )


def mbpp(row: Mapping[str, Any], where: str) -> Problem:
    """One row of MBPP, sanitized or not, or of MBPP+. Raises DataError."""
    text = text_of(row, "text" if "text" in row else "prompt", where)
    listed = texts_of(row, "test_list", where)
    if not listed:
        raise DataError("test_list is empty", where=where, fix="give the row at least one assertion")
    more = texts_of(row, "challenge_test_list", where)
    imports = texts_of(row, "test_imports", where)
    before, after = _around(optional_text(row, "test_setup_code", where), where)
    before = "\n".join([before, *imports]).strip()
    for number, each in enumerate([*listed, *more], 1):
        _parsed(each, f"assertion {number}", where)
    entry = _tested_name(listed, optional_text(row, "code", where), where)
    public = max(1, len(listed) // 2)
    visible = [test for each in listed[:public] for test in assert_tests(each, entry)]
    hidden = [test for each in [*listed[public:], *more] for test in assert_tests(each, entry)]
    if (plus := optional_text(row, "test", where)).strip():  # of MBPP+
        _parsed(plus, "test", where)
        table = _table_tests(plus, entry)
        hidden += [{"kind": "code", "code": _needing(plus)}] if table is None else table
    tests = fitting(
        [{**test, "public": True} for test in visible] + [{**test, "public": False} for test in hidden], where
    )
    examples = "\n".join(listed[:public])
    statement = f"{text.strip()}\n\nThe function is called `{entry}`. It must pass tests like:\n\n{examples}"
    ours = {"id": "mbpp-" + (id_of(row, "task_id") or content_id(text, 16)), "statement": statement, "family": "mbpp"}
    ours |= {"preamble": before, "setup": after}
    return problem_from_row({**ours, **public_split(row, where), "entry": entry, "tests": tests}, where)


def _around(setup: str, where: str) -> tuple[str, str]:
    """Return which statements of MBPP's setup run before an answer, and which after it.

    After it run those that use a name which neither they, nor the statements before them, nor Python define: the
    answer does. The others stay before it, since an answer may need them.
    """
    known, parts = set(dir(builtins)), (list[str](), list[str]())
    for statement in _parsed(setup, "test_setup_code", where).body:
        used, made = _names(statement)
        late = bool(used - made - known)
        known |= set() if late else made
        parts[late].append(ast.unparse(statement))
    return "\n".join(parts[0]), "\n".join(parts[1])


def _names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """Return the names that a statement reads, and those that it binds."""
    used, made = set[str](), set[str]()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return used, made


def _parsed(code: str, name: str, where: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise DataError(f"{name} is not Python", where=where, fix="take the row as it was published") from None


def _before(prompt: str, entry: str, where: str) -> str:
    """Return what the prompt holds before the entry's head."""
    try:
        tree = ast.parse(prompt)
    except SyntaxError:
        tree = _parsed(f"{prompt.rstrip()}\n    pass\n", "prompt", where)
    heads = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry]
    if not heads:
        raise DataError("prompt doesn't define entry_point", where=where, fix="take the row as it was published")
    first = min([heads[-1].lineno, *(node.lineno for node in heads[-1].decorator_list)])
    return "\n".join(prompt.split("\n")[: first - 1]).strip()


def _needing(code: str) -> str:
    return f"{_NUMPY}{code}" if "numpy" in code else code


def assert_tests(code: str, entry: str) -> list[Test]:
    """One assertion as calls, otherwise as code."""
    return _functional(code, entry) or [{"kind": "code", "code": code}]


def _functional(code: str, entry: str) -> list[Test]:
    return [{"kind": "functional", **test} for test in functional_tests(code, entry) or []]


def _check_tests(code: str, entry: str) -> tuple[list[Test], bool]:
    """Return the assertions of `check` that can be read, and whether something else in the code could fail, too."""
    tests: list[Test] = []
    rest = False
    for node in ast.parse(code).body:
        if not (isinstance(node, ast.FunctionDef) and node.name == "check"):
            rest |= not isinstance(node, ast.Assign | ast.Import | ast.ImportFrom | ast.Expr)
            continue
        name = node.args.args[0].arg if node.args.args else "candidate"
        for statement in node.body:
            alone = f"def check({name}):\n    {ast.unparse(statement)}" if isinstance(statement, ast.Assert) else ""
            found = _functional(alone, entry) if alone and "\n" not in ast.unparse(statement) else []
            value = getattr(statement, {ast.Assert: "test", ast.Expr: "value"}.get(type(statement), ""), None)
            constant = isinstance(value, ast.Constant) and bool(value.value)  # `assert True`, a docstring
            harmless = constant or isinstance(statement, ast.Pass)
            tests += found
            rest |= not found and not harmless
    return tests, rest or not tests


def _table_tests(code: str, entry: str) -> list[Test] | None:
    """Return calls for the literal `inputs` and `results` of EvalPlus; None if the tests are anything else."""
    tree = ast.parse(code)
    lists = {
        node.targets[0].id: node.value.elts
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.List)
    }
    inputs, results = lists.get("inputs"), lists.get("results")
    tolerance = _table_tolerance(tree)
    if inputs is None or results is None or tolerance is None or len(inputs) != len(results):
        return None
    lines = []
    for given, wanted in zip(inputs, results, strict=True):
        if not isinstance(given, ast.List):
            return None
        lines.append(f"assert {entry}({', '.join(map(ast.unparse, given.elts))}) == {ast.unparse(wanted)}")
    tests = _functional("\n".join(lines), entry)
    return [_with_tolerance(test, tolerance) for test in tests] or None


def _table_tolerance(tree: ast.Module) -> float | None:
    """Return what the one call `assertion(f(*inp), exp, tolerance)` names; None unless that is what the code does."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "assertion"
    ]
    compares = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "assertion"]
    if len(calls) != 1 or len(compares) != 1 or len(calls[0].args) != 3:
        return None
    # `assertion` has to compare all of both values: three statements, no call but those for floats.
    used = {ast.unparse(node.func) for node in ast.walk(compares[0]) if isinstance(node, ast.Call)}
    if len(compares[0].body) != 3 or not used <= {"is_floats", "np.testing.assert_allclose", "np.allclose"}:
        return None
    got, wanted, tolerance = calls[0].args
    called = isinstance(got, ast.Call) and len(got.args) == 1 and isinstance(got.args[0], ast.Starred)
    if not called or not isinstance(wanted, ast.Name) or not isinstance(tolerance, ast.Constant):
        return None
    return float(tolerance.value) if isinstance(tolerance.value, int | float) else None


def _with_tolerance(test: Test, tolerance: float) -> Test:
    """Apply a tolerance of 1e-6 to floats alone, a given tolerance to everything."""
    expected = decode(test["expected"])
    items: Sequence[Any] = expected if isinstance(expected, list | tuple) else [expected]
    if tolerance == 0 and not (items and all(type(item) is float for item in items)):
        return test
    return {name: value for name, value in test.items() if name != "equality"} | {"tolerance": tolerance or 1e-6}


def _shown_calls(prompt: str, entry: str) -> Iterator[str]:
    """Yield pieces of the prompt that are a whole call of the entry."""
    for match in _CALL.finditer(prompt):
        if match["name"] != entry:
            continue
        start = match.start("name")
        for end in re.finditer(r"\)", prompt[start : start + _LONGEST_EXAMPLE]):
            piece = prompt[start : start + end.end()]
            try:
                ast.parse(piece, mode="eval")
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            yield piece
            break


def _tested_name(asserts: Sequence[str], code: str, where: str) -> str:
    """Return the function that all assertions call, defined by the sample solution where there is one."""
    called = [
        {
            node.func.id
            for node in ast.walk(ast.parse(each))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        for each in asserts
    ]
    both = set.intersection(*called)
    defined = re.findall(r"^def\s+(\w+)", code, re.MULTILINE)
    for name in reversed(defined):
        if name in both:
            return str(name)
    outermost = re.match(r"\s*assert\s+\(*(?:not\s+)?(?:\w+\()*?(\w+)\(", asserts[0])
    names = sorted(both - {"set", "sorted", "list", "tuple", "abs", "len", "round", "isclose", "str"})
    if len(names) == 1:
        return names[0]
    if outermost and outermost[1] in names:
        return outermost[1]
    raise DataError("test_list calls no one function", where=where, fix="let all its assertions call the same one")
