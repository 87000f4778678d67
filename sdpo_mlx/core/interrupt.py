"""Ctrl-C and SIGTERM as a flag: the first requests a stop, the second exits at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Catch SIGINT and SIGTERM inside a `with` block; outside the main thread it catches nothing.

    The loop checks `requested()` between pieces of work, saves, and exits with `exit_code` (130 or 143).
    `leave` is called with the exit code on the second signal; it may restore the terminal.
    """

    def __init__(self, leave: Callable[[int], object] = os._exit) -> None:
        self._leave = leave
        self._signal = 0
        self._before: dict[signal.Signals, object] = {}

    @property
    def exit_code(self) -> int:
        """128 + the first signal, 0 if there was none."""
        return 128 + self._signal if self._signal else 0

    def requested(self) -> bool:
        """Whether a signal was received."""
        return self._signal != 0

    def __enter__(self) -> Interrupt:
        # Python runs handlers in the main thread only and refuses to install them elsewhere
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: the handler came from C and cannot be put back from here
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._before = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._signal:
            self._leave(128 + number)
        self._signal = self._signal or number
