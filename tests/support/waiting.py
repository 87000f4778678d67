"""Waiting for conditions: the limit only ends a test that hangs, a loaded machine never reaches it."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_SECONDS = 900


def wait_until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Poll until `condition()` is true; fail after HANG_SECONDS."""
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come true within {HANG_SECONDS} s")
        time.sleep(0.01)
