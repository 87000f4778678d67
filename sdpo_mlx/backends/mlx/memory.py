"""What each phase of a step holds at its peak, and Metal's limits while it learns; all through MLX's public calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

CACHE_SHARE = 8  # freed buffers that MLX may keep: this part of the memory that the device recommends


class PeakTracker:
    """Peaks by phase, in bytes, since they were last read; a phase begins with an empty cache of buffers."""

    def __init__(self) -> None:
        self.phase, self.seen = "load", dict[str, int]()

    def begin(self, phase: str) -> None:
        """From here on, what is held counts for `phase`."""
        self._note()
        mx.clear_cache()
        self.phase = phase

    def read(self) -> dict[str, int]:
        """The peak of each phase; reading begins anew."""
        self._note()
        seen, self.seen = self.seen, {}
        return seen

    def _note(self) -> None:
        self.seen[self.phase] = max(self.seen.get(self.phase, 0), mx.get_peak_memory())
        mx.reset_peak_memory()


@contextmanager
def metal_limits() -> Iterator[None]:
    """Inside, Metal keeps the model's memory wired and few freed buffers; both limits are given back.

    Without a GPU nothing is set: the CPU has neither.
    """
    recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
    if mx.default_device() != mx.Device(mx.gpu) or not recommended:
        yield
        return
    wired, cached = mx.set_wired_limit(recommended), mx.set_cache_limit(recommended // CACHE_SHARE)
    try:
        yield
    finally:
        mx.set_wired_limit(wired)
        mx.set_cache_limit(cached)
