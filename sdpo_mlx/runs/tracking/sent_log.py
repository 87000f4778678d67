"""What was sent to each tracker, stored in the run folder so that a resumed run does not send it again.

A tracker may buffer values in memory, which a kill loses. So a value counts as sent only once it is older than the
tracker's buffer time, or when the tracker was closed without an error.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdpo_mlx.core.storage import write_text

# Seconds that a tracker may buffer a value, well above its interval: wandb sends every 15 s, trackio twice a second.
BUFFERED: Mapping[str, float] = {"wandb": 30.0, "trackio": 2.0}


class SentLog:
    """The highest step sent, by tracker and kind of event; and the id of the run in all trackers."""

    def __init__(self, path: Path, *, fresh: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file of an earlier process; for a `fresh` run or a damaged file, start empty."""
        self._path, self._clock = path, clock
        self.id, self._safe = uuid.uuid4().hex[:8], dict[str, dict[str, int]]()
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            found = {} if fresh else json.loads(path.read_text(encoding="utf-8"))
            name, sent = str(found["id"]), {name: dict(steps) for name, steps in found["told"].items()}
            self.id, self._safe = name or self.id, sent
        self._sent: dict[str, dict[str, int]] = {name: dict(steps) for name, steps in self._safe.items()}
        self._buffered: list[tuple[float, str, str, int]] = []

    def contains(self, name: str, event: Mapping[str, Any]) -> bool:
        """Return whether this event, or a later one of its kind, was sent to a tracker."""
        return int(event["step"]) <= self._sent.get(name, {}).get(_kind(event), -1)

    def last_step(self, name: str) -> int:
        """Return the highest step sent to a tracker, -1 if there is none."""
        return max(self._sent.get(name, {}).values(), default=-1)

    def add(self, name: str, event: Mapping[str, Any]) -> None:
        """Record that this event was sent to a tracker."""
        kind, step = _kind(event), int(event["step"])
        self._sent.setdefault(name, {})[kind] = step
        self._buffered.append((self._clock() + BUFFERED.get(name, 0.0), name, kind, step))

    def save(self, closed: str | None = None) -> None:
        """Store what has left the trackers' buffers, all of a tracker that was `closed`; raises StorageError."""
        now = self._clock()
        safe = [each for each in self._buffered if each[0] <= now or each[1] == closed]
        self._buffered = [each for each in self._buffered if each not in safe]
        for _, name, kind, step in safe:
            self._safe.setdefault(name, {})[kind] = step
        write_text(self._path, json.dumps({"id": self.id, "told": self._safe}, indent=2) + "\n")


def _kind(event: Mapping[str, Any]) -> str:
    """Return the curve of an event: scores during training, the final one before, the final one after."""
    return "/".join(filter(None, (event["type"], event.get("adapter"))))
