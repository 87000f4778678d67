"""Comparing and showing plain values, outside the sandbox.

The rules, as a user may rely on them:

- Type and value both count: `1` is not `True` and not `1.0`, a list is no tuple, a set no frozenset, text no
  bytes. NaN equals NaN, `-0.0` equals `0.0`, infinities equal themselves, integers have any size.
- The order of a dict's keys and of a set never counts; a dict's keys are compared by type as well.
- `tolerance` holds for every float inside the value, at any depth: |expected - got| may be tolerance times
  max(1, |expected|, |got|), and an int may stand for a float. Two ints, keys of a dict and text stay exact.
- `unordered` frees the order of the outermost list or tuple alone, repeats counted; lists inside keep theirs.
- Tests of public contest sets compare as the judges of these sets: see `EQUALITIES` and `OUTPUT_EQUALITIES`.
- Printed text is compared line by line. Spaces at line ends, blank lines at the end and the kind of line
  break do not count; spaces within a line and at its start do. With a tolerance, words that are numbers
  need only be near, and the spacing between words is free.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

_CONTAINERS = (list, tuple)
_SETS = (set, frozenset)
# How tests that were assertions compare: `python`: `==` (1 equals True and 1.0); `truth`: `bool(got)`;
# `set`, `sorted`, `items`: of what iterating gives; `absolute`, `relative`: a number within `tolerance`.
# `json`: `==` of what JSON writes, as in the judges of LiveCodeBench and APPS: a tuple is a list, a key text.
EQUALITIES = ("python", "truth", "set", "sorted", "items", "absolute", "relative", "json")
# Of printed text, without blanks at both ends of a line. `decimal`, LiveCodeBench: lines that differ may hold the same
# decimal numbers (`3.0` and `3`). `allclose`, APPS and TACO: blank lines do not count, and words that are numbers need
# only be near, as for numpy's `allclose`; two integers must be equal, which that does not ask from 100,000 on.
OUTPUT_EQUALITIES = ("decimal", "allclose")
_RELATIVE, _ABSOLUTE = 1e-5, 1e-8  # the tolerances of `allclose`
_SHOWN_DIGITS = 600  # longer integers are shown by their ends; above 4,300 digits Python refuses to write them


def canonical(value: Any) -> Any:
    """Return a hashable form that is equal for two plain values exactly when type and value agree (NaN equals NaN)."""
    kind = type(value)
    if kind is float:
        return ("float", "nan" if math.isnan(value) else value)
    if kind in _CONTAINERS:
        return (kind.__name__, tuple(canonical(item) for item in value))
    if kind in _SETS:
        return (kind.__name__, _bag([canonical(item) for item in value]))
    if kind is dict:
        return ("dict", _bag([(canonical(key), canonical(item)) for key, item in value.items()]))
    return (kind.__name__, value)


def _same_as(equality: str, expected: Any, got: Any, tolerance: float) -> bool:
    """Return what one of Python's own comparisons says; one that would raise says no."""
    if equality == "json":
        expected, got = _as_json(expected), _as_json(got)
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
        return bool(expected == got)  # truth, items, python, json
    except (TypeError, OverflowError):
        return False


def _as_json(value: Any) -> Any:
    """Return a plain value with what JSON cannot tell apart made equal."""
    kind = type(value)
    if kind in _CONTAINERS:
        return [_as_json(item) for item in value]
    if kind is dict:
        return {_json_key(key): _as_json(item) for key, item in value.items()}
    return value


def _json_key(key: Any) -> Any:
    if key is None or type(key) is bool:
        return json.dumps(key)
    return show(key) if type(key) in (int, float) else key


def _bag(items: list[Any]) -> frozenset[Any]:
    """Counted, because a set may hold NaN more than once."""
    return frozenset(Counter(items).items())


def same(
    expected: Any, got: Any, *, tolerance: float | None = None, unordered: bool = False, equality: str | None = None
) -> bool:
    """Return whether an answer is right, by the rules above; `equality` is one of `EQUALITIES` instead of all these."""
    if equality is not None:
        return _same_as(equality, expected, got, tolerance or 0.0)
    if unordered and type(expected) in _CONTAINERS:
        return type(got) is type(expected) and _same_bag(expected, got, tolerance)
    return _close(expected, got, tolerance) if tolerance is not None else canonical(expected) == canonical(got)


def _same_bag(expected: Sequence[Any], got: Sequence[Any], tolerance: float | None) -> bool:
    """Equal as multisets; with a tolerance, whether all can be paired with a near partner."""
    if len(expected) != len(got):
        return False
    equal = Counter(map(canonical, expected)) == Counter(map(canonical, got))
    if equal or tolerance is None:
        return equal
    if all(type(item) is int or (type(item) is float and math.isfinite(item)) for item in (*expected, *got)):
        # On a line, pairing in order finds a pairing whenever there is one.
        return all(_close(a, b, tolerance) for a, b in zip(sorted(expected), sorted(got), strict=True))
    return _can_pair(len(expected), lambda i, j: _close(expected[i], got[j], tolerance))


def _can_pair(count: int, near: Callable[[int, int], bool]) -> bool:
    """Whether a perfect matching exists: each item in turn looks for a free partner, moving earlier ones along."""
    item_of, partner_of = dict[int, int](), dict[int, int]()
    for item in range(count):
        came_from, queue, free = dict[int, int](), [item], None
        while queue and free is None:
            here = queue.pop()
            for other in range(count):
                if other in came_from or not near(here, other):
                    continue
                came_from[other] = here
                if other not in item_of:
                    free = other
                    break
                queue.append(item_of[other])
        if free is None:
            return False
        while free is not None:  # walk back to the item that was looking, giving each its new partner
            owner = came_from[free]
            item_of[free] = owner
            partner_of[owner], free = free, partner_of.get(owner)
    return True


def _close(expected: Any, got: Any, tolerance: float) -> bool:
    """As `canonical` equality, but floats need only be near."""
    kinds = {type(expected), type(got)}
    if float in kinds and kinds <= {int, float}:
        return _near(expected, got, tolerance)
    if len(kinds) > 1:
        return False
    if type(expected) in _CONTAINERS:
        return len(expected) == len(got) and all(_close(a, b, tolerance) for a, b in zip(expected, got, strict=True))
    if type(expected) in _SETS:
        return _same_bag(list(expected), list(got), tolerance)
    if type(expected) is dict and len(expected) == len(got):
        mine, theirs = ({canonical(key): item for key, item in value.items()} for value in (expected, got))
        return mine.keys() == theirs.keys() and all(_close(mine[key], theirs[key], tolerance) for key in mine)
    return bool(canonical(expected) == canonical(got))


def _near(expected: float, got: float, tolerance: float) -> bool:
    """Return numbers within the tolerance; infinities and NaN only equal themselves."""
    try:
        expected, got = float(expected), float(got)
    except OverflowError:
        return False
    if not (math.isfinite(expected) and math.isfinite(got)):
        return bool(canonical(expected) == canonical(got))
    return abs(expected - got) <= tolerance * max(1.0, abs(expected), abs(got))


def same_output(expected: str, got: str, *, tolerance: float | None = None, equality: str | None = None) -> bool:
    """Return whether printed text is right, by the rules above; `equality` is one of `OUTPUT_EQUALITIES` instead."""
    mine, theirs = printed_lines(expected, equality), printed_lines(got, equality)
    pairs = zip(mine, theirs, strict=False)
    same_lines = (same_line(a, b, tolerance=tolerance, equality=equality) for a, b in pairs)
    return len(mine) == len(theirs) and all(same_lines)


def printed_lines(text: str, equality: str | None = None) -> list[str]:
    """Return the lines that count, without what stands at their ends."""
    if equality is None:
        return [line.rstrip() for line in text.rstrip().split("\n")]
    lines = [line.strip() for line in text.strip().split("\n")]
    return lines if equality == "decimal" else [line for line in lines if line]


def same_line(expected: str, got: str, *, tolerance: float | None = None, equality: str | None = None) -> bool:
    """One line of `printed_lines` against another."""
    if expected == got or (tolerance is None and equality is None):
        return expected == got
    mine, theirs = expected.split(), got.split()
    if len(mine) != len(theirs):
        return False
    if equality == "decimal":
        return _same_decimals(mine, theirs)
    if equality == "allclose":
        return all(map(_close_word, mine, theirs))
    return all(_same_word(a, b, tolerance or 0.0) for a, b in zip(mine, theirs, strict=True))


def _same_decimals(mine: list[str], theirs: list[str]) -> bool:
    """Return whether all words are numbers, exactly equal in pairs."""
    try:
        return all(Decimal(a) == Decimal(b) for a, b in zip(mine, theirs, strict=True))
    except ArithmeticError:  # a word that is no number, or one that does not compare
        return False


def _close_word(expected: str, got: str) -> bool:
    """Equal, or both numbers that are near; two integers must be equal."""
    if expected == got:
        return True
    try:
        if all(word.lstrip("+-").isdecimal() for word in (expected, got)):
            return Decimal(expected) == Decimal(got)
        wanted, found = float(expected), float(got)
    except (ValueError, ArithmeticError):
        return False
    return wanted == found or abs(wanted - found) <= _ABSOLUTE + _RELATIVE * abs(wanted) < math.inf


def _same_word(expected: str, got: str, tolerance: float) -> bool:
    """Equal, or both numbers that are near; two integers must be equal."""
    integers = all(word.lstrip("+-").isdecimal() for word in (expected, got))
    try:
        return expected == got or (not integers and _near(float(expected), float(got), tolerance))
    except ValueError:
        return False


def show(value: Any) -> str:
    """Return a repr whose order never depends on hashing; very long integers by their ends."""
    kind = type(value)
    if kind is list:
        return "[" + ", ".join(map(show, value)) + "]"
    if kind is tuple:
        return "(" + ", ".join(map(show, value)) + (",)" if len(value) == 1 else ")")
    if kind in _SETS:
        inner = "{" + ", ".join(sorted(map(show, value))) + "}" if value else f"{kind.__name__}()"
        return f"frozenset({inner})" if kind is frozenset and value else inner
    if kind is dict:
        return "{" + ", ".join(f"{show(key)}: {show(item)}" for key, item in value.items()) + "}"
    return _show_long(value) if kind is int and value.bit_length() > _SHOWN_DIGITS * 3 else repr(value)


def _show_long(value: int) -> str:
    """Return both ends and the number of digits."""
    size, digits = abs(value), int(value.bit_length() * math.log10(2))
    while 10**digits <= size:
        digits += 1
    while 10 ** (digits - 1) > size:
        digits -= 1
    head, tail = size // 10 ** (digits - 20), size % 10**20
    return f"{'-' if value < 0 else ''}{head}...{tail:020} ({digits} digits)"
