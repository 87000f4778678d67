"""Pairwise tables: few combinations in which every two values of different axes meet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return rows of the product of `axes` that hold every pair of values of two axes at least once.

    Greedy and deterministic: each row is the one of the whole product that holds most of the missing pairs.
    """
    rows = [*product(*(range(len(axis)) for axis in axes))]
    pairs = {row: {*combinations(enumerate(row), 2)} for row in rows}
    missing = set().union(*pairs.values())
    chosen: list[tuple[int, ...]] = []
    while missing:
        best = max(rows, key=lambda row: len(pairs[row] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return [tuple(axis[at] for axis, at in zip(axes, row, strict=True)) for row in chosen]
