"""What a template of a problem is: wordings, ranges of its numbers, the formula of its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Template:
    """One kind of problem; `<a>` in a wording is the number a. A `held_out` one gives no training problem."""

    name: str
    family: str
    level: str
    ranges: Mapping[str, tuple[int, int]]  # both ends belong to it
    wordings: tuple[str, ...]
    answer: Callable[..., Any]
    keep: Callable[..., bool] | None = None
    held_out: bool = False


def written(value: Any) -> str:
    """An answer as text: whole numbers, fractions in lowest terms, tuples in brackets, lists and text as they are."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(written, value)) + ")"
    if isinstance(value, list):
        return ", ".join(map(written, value))
    return str(Fraction(value)) if isinstance(value, Fraction) else str(value)


def root(square: int) -> str:
    """The square root in lowest form, in LaTeX."""
    outside = max(n for n in range(1, int(square**0.5) + 2) if square % (n * n) == 0)
    inside = square // outside**2
    return str(outside) if inside == 1 else f"{outside if outside > 1 else ''}\\sqrt{{{inside}}}"
