"""Peak memory by phase of a step, and Metal's limits during learning; MLX's public functions alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

CACHE_SHARE = 8  # freed buffers that MLX may keep: one part in this many of the recommended working set


class PeakTracker:
    """Peaks by phase in bytes since the last `read`; a phase begins with an empty buffer cache."""

    def __init__(self) -> None:
        self.phase, self.seen = "load", dict[str, int]()

    def begin(self, phase: str) -> None:
        """Count memory for `phase` from here on."""
        self._note()
        mx.clear_cache()
        self.phase = phase

    def read(self) -> dict[str, int]:
        """Return the peak of each phase and reset them."""
        self._note()
        seen, self.seen = self.seen, {}
        return seen

    def _note(self) -> None:
        self.seen[self.phase] = max(self.seen.get(self.phase, 0), mx.get_peak_memory())
        mx.reset_peak_memory()


@contextmanager
def metal_limits() -> Iterator[None]:
    """Inside, Metal keeps the model's memory wired and few freed buffers; both limits are restored.

    Without a GPU nothing is set: the CPU has neither limit.
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
