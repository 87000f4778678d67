"""A thread that does one tracker's work, so that a tracker which hangs holds nobody up for longer than agreed."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any


class TrackerError(Exception):
    """A tracker raised something, or gave no answer in time; the text says what."""


class Worker:
    """Calls functions one after the other in one daemon thread; whoever asks waits for the answer."""

    def __init__(self, name: str) -> None:
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"tracker {name}", daemon=True).start()

    def call(self, work: Callable[[], Any], seconds: float) -> Any:
        """What `work` returns; raises TrackerError with what it raised, or after `seconds`, the thread then given up.

        What it prints on stdout meanwhile is dropped: a result for a program may be due there.
        """
        with redirect_stdout(io.StringIO()):
            self._asked.put(work)
            try:
                answer, error = self._answers.get(timeout=seconds)
            except queue.Empty:
                raise TrackerError(f"no answer within {seconds:g} seconds") from None
        if error is not None:
            raise TrackerError(f"{type(error).__name__}: {error}") from error
        return answer

    def leave(self) -> None:
        """Let the thread end once it is idle."""
        self._asked.put(None)

    def _work(self) -> None:
        while (work := self._asked.get()) is not None:
            try:
                self._answers.put((work(), None))
            except BaseException as error:  # one that exits must not end the run either
                self._answers.put((None, error))
