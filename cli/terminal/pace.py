"""How far a piece of work has come and how long the rest of it takes; no drawing here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdpo_mlx.core.progress import ProgressCallback

SOONEST = 1.0  # seconds of work before there is a pace to go by
ENOUGH = 0.1  # share of the work alike: of answers written together the first says little of the others


class Pace:
    """One piece of work; the first `tell` says what was there already, which took no time of ours."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.clock, self.begun = what, clock, clock()
        self.done = self.total = 0
        self._first: tuple[int, float] | None = None

    def tell(self, done: int, total: int) -> None:
        """Take in how much is done; a total of 0 is unknown."""
        self.done, self.total = done, total
        self._first = self._first or (done, self.clock())

    def seconds(self) -> float:
        """How long it has taken."""
        return self.clock() - self.begun

    def seconds_left(self) -> float | None:
        """By the pace so far; None while there is none."""
        if self._first is None or not self.total:
            return None
        (already, since), now = self._first, self.clock()
        if self.done - already < max(1, ENOUGH * (self.total - already)) or now - since < SOONEST:
            return None
        return (now - since) / (self.done - already) * max(0, self.total - self.done)

    def words(self) -> str:
        """`12/64  0:42 left`; the time it has taken where the end is not known."""
        from sdpo_cli.terminal.render import duration

        left, spent = self.seconds_left(), duration(self.seconds())
        return "  ".join(part for part in (self.count(), f"{duration(left)} left" if left else spent) if part)

    def count(self) -> str:
        """How many are done, and of how many where that is known; blank before anything was told."""
        return f"{self.done}/{self.total}" if self.total else str(self.done or "")


@dataclass
class RunningTask:
    """What is being done now; `doing` is what the work itself calls, `heard` what is called at each word of it."""

    heard: Callable[[Pace], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    pace: Pace | None = None

    def doing(self, what: str) -> ProgressCallback:
        """Begin another piece of work (a blank one: nothing); gives what tells how far it has come."""
        pace = self.pace = Pace(what, self.clock) if what else None

        def tell(done: int, total: int) -> None:
            if pace is not None:
                pace.tell(done, total)
                self.heard(pace)

        return tell
