"""Where rows come from: a file of one's own, or a data set of the hub; one way to turn them into problems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sdpo_mlx.data import Collected, OnError, collect

T = TypeVar("T")


def collect_rows(source: str, parse: Callable[[dict[str, Any], str], T], on_error: OnError = "stop") -> Collected[T]:
    """Every row of `source` turned into what a task needs by `parse(row, where)`; `id` is not required.

    Raises DataError naming the first ten bad rows.
    """
    return collect(Path(source), parse, on_error, required=())
