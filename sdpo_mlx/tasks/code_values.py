"""Comparing and showing plain values, outside the sandbox."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

_CONTAINERS = (list, tuple)
# How tests that were assertions compare: `python`: `==` (1 equals True and 1.0); `truth`: `bool(got)`;
# `set`, `sorted`, `items`: of what iterating gives; `absolute`, `relative`: a number within `tolerance`.
EQUALITIES = ("python", "truth", "set", "sorted", "items", "absolute", "relative")


def canonical(value: Any) -> Any:
    """A hashable form that is equal for two plain values exactly when type and value agree (NaN equals NaN)."""
    kind = type(value)
    if kind is float:
        return ("float", "nan" if math.isnan(value) else value)
    if kind in _CONTAINERS:
        return (kind.__name__, tuple(canonical(item) for item in value))
    if kind in (set, frozenset):
        return (kind.__name__, frozenset(canonical(item) for item in value))
    if kind is dict:
        return ("dict", frozenset((canonical(key), canonical(item)) for key, item in value.items()))
    return (kind.__name__, value)


def same(
    expected: Any,
    got: Any,
    *,
    tolerance: float | None = None,
    unordered: bool = False,
    equality: str | None = None,
) -> bool:
    """Whether an answer is right: same types, same values.

    `tolerance` is relative to max(1, |expected|) and lets an int stand for a float; `unordered` ignores
    the order of the outermost list or tuple; `equality` is one of `EQUALITIES` instead of all this.
    """
    if equality is not None:
        return _same_as(equality, expected, got, tolerance or 0.0)
    if unordered and type(expected) in _CONTAINERS:
        return type(got) is type(expected) and _same_bag(expected, got, tolerance)
    return _close(expected, got, tolerance) if tolerance is not None else canonical(expected) == canonical(got)


def _same_as(equality: str, expected: Any, got: Any, tolerance: float) -> bool:
    """What one of Python's own comparisons says; one that would raise says no."""
    try:
        match equality:
            case "set":
                return set(expected) == set(got)
            case "sorted":
                return bool(sorted(got) == expected)
            case "absolute":
                return isinstance(got, (int, float)) and abs(got - expected) <= tolerance
            case "relative":
                return isinstance(got, (int, float)) and math.isclose(got, expected, rel_tol=tolerance)
        return bool(expected == got)  # truth, items, python
    except (TypeError, OverflowError):
        return False


def _same_bag(expected: Any, got: Any, tolerance: float | None) -> bool:
    """Equal as multisets; with a tolerance the first close partner is taken."""
    if len(expected) != len(got):
        return False
    if tolerance is None:
        return Counter(map(canonical, expected)) == Counter(map(canonical, got))
    rest = list(got)
    for item in expected:
        partner = next((i for i, other in enumerate(rest) if _close(item, other, tolerance)), None)
        if partner is None:
            return False
        rest.pop(partner)
    return True


def _close(expected: Any, got: Any, tolerance: float) -> bool:
    """As `canonical` equality, but floats need only be near."""
    if type(expected) is float and type(got) in (int, float):
        return _near(expected, got, tolerance)
    if type(expected) is not type(got):
        return False
    if type(expected) in _CONTAINERS:
        return len(expected) == len(got) and all(_close(a, b, tolerance) for a, b in zip(expected, got, strict=True))
    if type(expected) is dict:
        mine, theirs = ({canonical(key): item for key, item in value.items()} for value in (expected, got))
        return mine.keys() == theirs.keys() and all(_close(mine[key], theirs[key], tolerance) for key in mine)
    return bool(canonical(expected) == canonical(got))


def _near(expected: float, got: float, tolerance: float) -> bool:
    """Numbers within the tolerance; infinities and NaN only equal themselves."""
    try:
        got = float(got)
    except OverflowError:
        return False
    if not (math.isfinite(expected) and math.isfinite(got)):
        return bool(canonical(expected) == canonical(got))
    return abs(expected - got) <= tolerance * max(1.0, abs(expected))


def same_output(expected: str, got: str, *, tolerance: float | None = None) -> bool:
    """Whether printed text is right: spaces at line ends and blank lines at the end do not count."""
    mine, theirs = _lines(expected), _lines(got)
    if mine == theirs or tolerance is None:
        return mine == theirs
    pairs = [(a.split(), b.split()) for a, b in zip(mine, theirs, strict=False)]
    return len(mine) == len(theirs) and all(_same_words(a, b, tolerance) for a, b in pairs)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_words(expected: list[str], got: list[str], tolerance: float) -> bool:
    """Words equal, or both numbers that are near."""
    if len(expected) != len(got):
        return False
    for mine, theirs in zip(expected, got, strict=True):
        try:
            if mine != theirs and not _near(float(mine), float(theirs), tolerance):
                return False
        except ValueError:
            return False
    return True


def show(value: Any) -> str:
    """A repr whose order never depends on hashing."""
    kind = type(value)
    if kind is list:
        return "[" + ", ".join(map(show, value)) + "]"
    if kind is tuple:
        return "(" + ", ".join(map(show, value)) + (",)" if len(value) == 1 else ")")
    if kind in (set, frozenset):
        inner = "{" + ", ".join(sorted(map(show, value))) + "}" if value else f"{kind.__name__}()"
        return f"frozenset({inner})" if kind is frozenset and value else inner
    if kind is dict:
        return "{" + ", ".join(f"{show(key)}: {show(item)}" for key, item in value.items()) + "}"
    return repr(value)
