"""Reads simple assertions as data, so that a value is compared outside of the process that made it.

Assertions that run beside an answer can be defeated by it (patch the comparison, patch `raise`); a call with
literal arguments and a literal expectation needs no such trust. Nothing is executed here: the text is parsed,
and whatever is not of a known form leaves the whole text unread.

Known forms, `f` being the entry, the `candidate` of a `check`, or `Solution().f`:
`f(a) == x`, `x == f(a)`, `f(a) is None`, `f(a)`, `not f(a)`, forms joined by `and`,
`set(f(a)) == set(x)`, `sorted(f(a)) == x`, `list(f(a)) == x`, `tuple(f(a)) == x`,
`abs(f(a) - x) < e`, `math.isclose(f(a), x)`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

from sdpo_mlx.tasks.code.harness import NotPlainError, encode

_LARGEST = 100_000  # items, characters or bits that folding one expression may make
_WRAPPERS = {"set": ("set", set), "sorted": ("sorted", list), "list": ("items", list), "tuple": ("items", tuple)}
_CONTAINERS: dict[str, type] = {"set": set, "frozenset": frozenset, "list": list, "tuple": tuple}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_UNREADABLE = (NotPlainError, SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError)


class _UnknownFormError(ValueError):
    """Neither a literal nor a known form of assertion."""


def functional_tests(code: str, entry: str) -> list[dict[str, Any]] | None:
    """Return functional tests that hold exactly when the assertions in `code` do; None when any form is unknown.

    Each is `{"args", "expected"}` with encoded values, an `equality` as in `compare.same` if the
    assertion is laxer or stricter than type and value, and a `tolerance` where it names one.
    """
    try:
        tree = ast.parse(code)
        tests = [test for names, node in _asserted(tree.body, {entry}) for test in _tests(node, names, entry)]
    except _UNREADABLE:
        return None
    return tests or None


def _asserted(body: list[ast.stmt], names: set[str]) -> Iterator[tuple[set[str], ast.expr]]:
    """Yield what is asserted, with the names that mean the entry there."""
    for node in body:
        if isinstance(node, ast.Assert):
            yield names, node.test
        elif isinstance(node, ast.FunctionDef):
            if node.name != "check" or len(node.args.args) != 1 or node.decorator_list:
                raise _UnknownFormError(node.name)
            yield from _asserted(node.body, {node.args.args[0].arg})
        elif isinstance(node, ast.Expr):  # docstrings, idle names, the call of `check`
            call = node.value
            named_check = isinstance(call, ast.Call) and _named(call.func, {"check"})
            if not (named_check or isinstance(call, (ast.Constant, ast.Name))):
                raise _UnknownFormError("expression")
        elif isinstance(node, ast.Assign):  # notes such as METADATA; a rebound name could mean anything later
            if not all(isinstance(each, ast.Name) and each.id.isupper() for each in node.targets):
                raise _UnknownFormError("assignment")
        elif not isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)):
            raise _UnknownFormError(type(node).__name__)


def _tests(node: ast.expr, names: set[str], entry: str) -> Iterator[dict[str, Any]]:
    """Yield the tests of one asserted expression; a constant that always holds is none."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        for part in node.values:
            yield from _tests(part, names, entry)
    elif not (isinstance(node, ast.Constant) and node.value):
        yield _Reader(names, entry).read(node)


class _Reader:
    """Reads one expression; every method raises `_UnknownFormError` for other forms."""

    def __init__(self, names: set[str], entry: str) -> None:
        self.names, self.entry = names, entry

    def read(self, node: ast.expr) -> dict[str, Any]:
        """One test."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self._test(self._arguments(node.operand), False, "truth")
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._comparison(node.left, node.ops[0], node.comparators[0])
        if isinstance(node, ast.Call) and _named(node.func, {"isclose"}, module="math"):
            return self._isclose(node)
        return self._test(self._arguments(node), True, "truth")

    def _comparison(self, left: ast.expr, comparison: ast.cmpop, right: ast.expr) -> dict[str, Any]:
        if isinstance(comparison, (ast.Lt, ast.LtE)):
            return self._near(left, _number(right), strict=isinstance(comparison, ast.Lt))
        if isinstance(comparison, ast.Is):
            if not (isinstance(right, ast.Constant) and right.value in (None, True, False)):
                raise _UnknownFormError("is")
            return self._test(self._arguments(left), right.value, "exact")
        if not isinstance(comparison, ast.Eq):
            raise _UnknownFormError(type(comparison).__name__)
        if not self._mentions(left):
            left, right = right, left
        wrapper = left.func.id if isinstance(left, ast.Call) and isinstance(left.func, ast.Name) else ""
        if wrapper not in _WRAPPERS or not isinstance(left, ast.Call):
            return self._test(self._arguments(left), _literal(right), "python")
        if len(left.args) != 1 or left.keywords:  # `set(f(a)) == x` and its like look at the items alone
            raise _UnknownFormError("arguments")
        expected, (equality, kind) = _literal(right), _WRAPPERS[wrapper]
        if type(expected) is not kind:
            raise _UnknownFormError("never equal")
        items = sorted(expected, key=repr) if equality == "set" else list(expected)
        return self._test(self._arguments(left.args[0]), items, equality)

    def _near(self, node: ast.expr, tolerance: float, *, strict: bool) -> dict[str, Any]:
        """`abs(f(a) - x) < e`."""
        if not (isinstance(node, ast.Call) and _named(node.func, {"abs"}) and len(node.args) == 1):
            raise _UnknownFormError("<")
        difference = node.args[0]
        if not (isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub)):
            raise _UnknownFormError("abs")
        got, expected = difference.left, difference.right
        if not self._mentions(got):
            got, expected = expected, got
        if strict and tolerance <= 0:
            raise _UnknownFormError("never")
        limit = math.nextafter(tolerance, 0.0) if strict else tolerance
        return self._test(self._arguments(got), _number(expected), "absolute", limit)

    def _isclose(self, node: ast.Call) -> dict[str, Any]:
        """`math.isclose(f(a), x, rel_tol=, abs_tol=)`, where one of the two tolerances decides."""
        options = {str(each.arg): _number(each.value) for each in node.keywords}
        if len(node.args) != 2 or not options.keys() <= {"rel_tol", "abs_tol"}:
            raise _UnknownFormError("isclose")
        got, expected = node.args if self._mentions(node.args[0]) else node.args[::-1]
        number, share, limit = _number(expected), options.get("rel_tol", 1e-9), options.get("abs_tol", 0.0)
        if not 0 <= share < 1 or limit < 0:
            raise _UnknownFormError("tolerance")
        arguments = self._arguments(got)
        if limit <= share * abs(number):
            return self._test(arguments, number, "relative", share)
        if limit >= share * abs(number) / (1 - share):
            return self._test(arguments, number, "absolute", limit)
        raise _UnknownFormError("both tolerances")

    def _mentions(self, node: ast.expr) -> bool:
        return any(self._is_entry(each.func) for each in ast.walk(node) if isinstance(each, ast.Call))

    def _is_entry(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Attribute) and node.attr == self.entry and isinstance(node.value, ast.Call):
            return _named(node.value.func, {"Solution"}) and not node.value.args
        return _named(node, self.names)

    def _arguments(self, node: ast.expr) -> list[Any]:
        """Return the literal arguments of a call of the entry."""
        if not (isinstance(node, ast.Call) and self._is_entry(node.func)) or node.keywords:
            raise _UnknownFormError("no plain call")
        arguments: list[Any] = []
        for each in node.args:
            if isinstance(each, ast.Starred):
                arguments.extend(_literal(each.value))
            else:
                arguments.append(_literal(each))
        return arguments

    def _test(self, args: list[Any], expected: Any, equality: str, tolerance: float | None = None) -> dict[str, Any]:
        test = {"args": [encode(each) for each in args], "expected": encode(expected)}
        if equality != "exact":
            test["equality"] = equality
        if tolerance is not None:
            test["tolerance"] = tolerance
        return test


def _named(node: ast.expr, names: set[str], module: str = "") -> bool:
    """Return a plain name, or one of a module."""
    if isinstance(node, ast.Attribute):
        return node.attr in names and isinstance(node.value, ast.Name) and node.value.id == module
    return isinstance(node, ast.Name) and node.id in names


def _number(node: ast.expr) -> Any:
    value = _literal(node)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _UnknownFormError("no finite number")
    return value


def _literal(node: ast.expr) -> Any:
    """The value of a literal, of bounded arithmetic on literals, and of calls such as `set()` and `float('inf')`."""
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _folded(type(node.op), _literal(node.left), _literal(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_literal(node.operand)
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)](map(_literal, node.elts))
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        if None in node.keys:
            raise _UnknownFormError("**")
        return {_literal(key): _literal(value) for key, value in pairs if key}
    if isinstance(node, ast.Call):
        return _called(node)
    return ast.literal_eval(node)


def _called(node: ast.Call) -> Any:
    values = [_literal(each) for each in node.args]
    if node.keywords or not isinstance(node.func, ast.Name) or len(values) > 1:
        raise _UnknownFormError("call")
    if node.func.id == "float" and values in (["inf"], ["-inf"], ["nan"]):
        return float(values[0])
    if node.func.id == "sorted":
        return sorted(*values)
    if node.func.id in _CONTAINERS:
        return _CONTAINERS[node.func.id](*values)
    raise _UnknownFormError("call")


def _folded(operation: type, left: Any, right: Any) -> Any:
    """Arithmetic whose result stays small: a test's text may not exhaust the process that reads it."""
    if operation is ast.Pow:
        if type(left) not in (int, float) or type(right) is not int or abs(left) > _LARGEST or not 0 <= right <= 1_000:
            raise _UnknownFormError("power")
    elif operation is ast.Mult:
        sizes = [len(each) if isinstance(each, (str, list, tuple)) else None for each in (left, right)]
        factor = next((other for size, other in zip(sizes, (right, left), strict=True) if size is not None), 0)
        if sum(size or 0 for size in sizes) * max(0, factor) > _LARGEST:
            raise _UnknownFormError("too long")
    return _ARITHMETIC[operation](left, right)
