"""The event stream `events.jsonl`.

One JSON object a line. `step` counts completed steps, as the checkpoints do. An event of step k must be
emitted before checkpoint k is saved (the `checkpoint` event too): then `rewind(k)` leaves exactly what an
uninterrupted run has at that point, wherever the kill fell.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdpo_mlx.core.jsonl import JsonlWriter
from sdpo_mlx.core.jsonl import read_records as read_events
from sdpo_mlx.core.storage import plain

__all__ = ["EventLog", "number", "read_events"]


def number(value: Any) -> float | None:
    """Return a finite number of an event, None for anything else."""
    valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if valid else None


class EventLog(JsonlWriter):
    """Writer of one event stream. Every method raises StorageError if the disk refuses."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        super().__init__(path)
        self._clock = clock

    def emit(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Append one event (`type` and `step` are required) and return it as written, `time` in epoch seconds.

        Non-finite numbers become null. Call `sync` before a checkpoint.
        """
        rest = {name: value for name, value in event.items() if name not in ("type", "time", "step")}
        head = {"type": event["type"], "time": round(self._clock(), 3), "step": int(event["step"])}
        record: dict[str, Any] = plain({**head, **rest})
        self.append([record])
        return record

    def rewind(self, step: int, also: Callable[[Mapping[str, Any]], bool] = lambda _: False) -> None:
        """Drop what a run resumed after `step` completed steps will emit again, atomically.

        That is every event of a later step, `run_finished`, unreadable lines and what `also` picks; `run_started`
        stays.
        """

        def stays(event: Mapping[str, Any]) -> bool:
            kind, at = event.get("type"), event.get("step")
            late = (at if isinstance(at, int) else 0) > step
            return kind == "run_started" or not (kind == "run_finished" or late or also(event))

        self.replace([event for event in read_events(self.path) if stays(event)])
