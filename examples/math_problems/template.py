"""Templates of problems: wordings, ranges of numbers, and the formula of the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Template:
    """One kind of problem; `<a>` in a wording is the number a. All problems of a `held_out` template are held out."""

    name: str
    family: str
    level: str
    ranges: Mapping[str, tuple[int, int]]  # both ends included
    wordings: tuple[str, ...]
    answer: Callable[..., Any]
    keep: Callable[..., bool] | None = None
    held_out: bool = False


def written(value: Any) -> str:
    """Return an answer as text: integers, fractions in lowest terms, tuples in parentheses, others unchanged."""
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
