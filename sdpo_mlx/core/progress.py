"""Progress reporting: callbacks passed down to long-running functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

ProgressCallback = Callable[[int, int], None]  # items done, and their total, 0 if unknown
StartTask = Callable[[str], ProgressCallback]  # called with the name of a task, returns its callback

T = TypeVar("T")
MEGABYTE = 1 << 20


def no_progress(_done: int, _total: int) -> None:
    """Ignore progress."""


def no_tasks(_what: str) -> ProgressCallback:
    """Ignore tasks and their progress."""
    return no_progress


def track(items: Iterable[T], on_progress: ProgressCallback, total: int | None = None) -> Iterator[T]:
    """Yield the items; report before the first and after each."""
    of = total if total is not None else len(items) if isinstance(items, Sized) else 0
    on_progress(0, of)
    for done, item in enumerate(items, 1):
        yield item
        on_progress(done, of)
