"""How a long piece of work tells whoever waits how far it has come: plain callables, handed down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

ProgressCallback = Callable[[int, int], None]  # how many are done, and of how many; 0 where that is unknown
StartTask = Callable[[str], ProgressCallback]  # begins a piece of work by its name

T = TypeVar("T")


def no_progress(_done: int, _total: int) -> None:
    """Nobody waits."""


def no_tasks(_what: str) -> ProgressCallback:
    """Nobody waits for any of it."""
    return no_progress


def track(items: Iterable[T], tell: ProgressCallback, total: int | None = None) -> Iterator[T]:
    """The items one after the other, told before the first and, when the next is asked for, after each."""
    of = total if total is not None else len(items) if isinstance(items, Sized) else 0
    tell(0, of)
    for done, item in enumerate(items, 1):
        yield item
        tell(done, of)
