"""Describe in one sentence where a value or printed text first differs from the expected one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sdpo_mlx.tasks.code.compare import canonical, printed_lines, same, same_line, show

_SHOWN = 60  # characters of a value inside a sentence
_FEW = 3
_NAMES = {"NoneType": "None", "str": "a string", "int": "an int", "bool": "a bool", "dict": "a dictionary"}


def kind_name(value: Any) -> str:
    """Return a type with its article: "a list", "an int", "None"."""
    name = type(value).__name__
    return _NAMES.get(name, f"a {name}")


def value_difference(
    expected: Any, got: Any, *, tolerance: float | None = None, unordered: bool = False, equality: str | None = None
) -> str:
    """Return what differs first between two unequal plain values; empty if showing both is enough."""
    if equality is not None and got is not None:
        return ""  # by Python's own comparison, of which types are no part
    if got is None:
        return f"expected {kind_name(expected)}, got None: the function returned no value"
    if type(expected) is not type(got):
        return _type_difference(expected, got)
    if unordered and isinstance(expected, list | tuple):
        return _bag_difference(expected, got)
    return _inside(expected, got, "", tolerance)


def output_difference(expected: str, got: str, *, tolerance: float | None = None, equality: str | None = None) -> str:
    """Return what differs first between two unequal printed texts."""
    if not got.strip():
        return "nothing was printed"
    mine, theirs = printed_lines(expected, equality), printed_lines(got, equality)
    for number, (want, have) in enumerate(zip(mine, theirs, strict=False), 1):
        if not same_line(want, have, tolerance=tolerance, equality=equality):
            sentence = f"first difference in line {number}: expected {_short(want)}, got {_short(have)}"
            if want.split() == have.split():
                return f"{sentence} (only the spacing differs)"
            return f"{sentence} (only upper and lower case differ)" if want.lower() == have.lower() else sentence
    at = min(len(mine), len(theirs))
    more = f"{_short(mine[at])} is missing" if len(mine) > at else f"{_short(theirs[at])} should not be there"
    return f"expected {_count(len(mine), 'line')}, got {len(theirs)}: line {at + 1} {more}"


def _type_difference(expected: Any, got: Any) -> str:
    sentence = f"expected {kind_name(expected)}, got {kind_name(got)}"
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple) and same(list(expected), list(got)):
        return f"{sentence} with the same items"
    return sentence


def _inside(expected: Any, got: Any, place: str, tolerance: float | None) -> str:
    """Descend to the first part that differs; both are of one type, or numbers that may stand for each other."""
    if type(expected) is not type(got):
        return _at(place, expected, got) + f" ({_type_difference(expected, got)})"
    if isinstance(expected, list | tuple):
        return _sequence_difference(expected, got, place, tolerance)
    if isinstance(expected, dict):
        return _dict_difference(expected, got, place, tolerance)
    if isinstance(expected, set | frozenset):
        return _bag_difference(list(expected), list(got), place)
    if isinstance(expected, str):
        return _text_difference(expected, got, place)
    return _at(place, expected, got) if place else ""


def _sequence_difference(expected: Any, got: Any, place: str, tolerance: float | None) -> str:
    for index, (want, have) in enumerate(zip(expected, got, strict=False)):
        if not same(want, have, tolerance=tolerance):
            return _inside(want, have, _deeper(place, f"index {index}"), tolerance)
    where = f" at {place}" if place else ""
    sentence = f"expected {_count(len(expected), 'item')}{where}, got {len(got)}"
    at = min(len(expected), len(got))
    if len(expected) > at:
        return f"{sentence}: {_short(expected[at])} at index {at} is missing"
    return f"{sentence}: {_short(got[at])} at index {at} should not be there"


def _dict_difference(expected: Any, got: Any, place: str, tolerance: float | None) -> str:
    mine, theirs = ({canonical(key): (key, item) for key, item in value.items()} for value in (expected, got))
    for key, (shown, want) in mine.items():
        if key in theirs and not same(want, theirs[key][1], tolerance=tolerance):
            return _inside(want, theirs[key][1], _deeper(place, f"key {_short(shown)}"), tolerance)
    missing = [_short(shown) for key, (shown, _) in mine.items() if key not in theirs]
    extra = [_short(shown) for key, (shown, _) in theirs.items() if key not in mine]
    return _missing_and_extra(missing, extra, "key", place)


def _text_difference(expected: str, got: str, place: str) -> str:
    """Return the position and both characters there, with a little of what follows."""
    inside = f" of {place}" if place else ""
    if expected.split() == got.split():
        return f"only the white space{inside} differs"
    if expected.lower() == got.lower():
        return f"only upper and lower case{inside} differ"
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    if at == len(got):
        return f"the text{inside} ends too early: {_short(expected[at:])} is missing at position {at}"
    if at == len(expected):
        return f"the text{inside} goes on too long: {_short(got[at:])} at position {at} should not be there"
    return f"first difference at position {at}{inside}: expected {_short(expected[at])}, got {_short(got[at])}"


def _bag_difference(expected: Any, got: Any, place: str = "") -> str:
    mine, theirs = (Counter(map(show, items)) for items in (expected, got))
    missing, extra = (map(_cut, sorted(items.elements())) for items in (mine - theirs, theirs - mine))
    return _missing_and_extra(list(missing), list(extra), "item", place)


def _missing_and_extra(missing: list[str], extra: list[str], noun: str, place: str) -> str:
    """Return both sides, a few of each."""
    where = f" at {place}" if place else ""
    return "; ".join(
        f"{word} {noun}{'s' if len(items) > 1 else ''}{where}: {', '.join(items[:_FEW])}"
        + (f" and {len(items) - _FEW} more" if len(items) > _FEW else "")
        for word, items in (("missing", missing), ("unexpected", extra))
        if items
    )


def _deeper(place: str, step: str) -> str:
    return f"{place}, {step}" if place else step


def _at(place: str, expected: Any, got: Any) -> str:
    return f"first difference at {place}: expected {_short(expected)}, got {_short(got)}"


def _short(value: Any) -> str:
    return _cut(show(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
