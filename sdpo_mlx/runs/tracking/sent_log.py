"""What the trackers of a run were told, kept in the run folder so that a resumed run doesn't say it again.

A tracker may hold values in memory for a while; a kill then takes them along. So a value counts as told only once
it is older than that, or when the tracker was closed in order.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdpo_mlx.core.storage import write_text

# Seconds that a tracker may hold a value, well above what its sender waits: wandb writes every 15, trackio twice a one.
HELD: Mapping[str, float] = {"wandb": 30.0, "trackio": 2.0}


class SentLog:
    """By tracker and kind of event, the highest step told; and the id that the trackers know the run by."""

    def __init__(self, path: Path, *, fresh: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file of an earlier process; a `fresh` run, or one whose file is damaged, begins anew."""
        self._path, self._clock = path, clock
        kept = {} if fresh else _read(path)
        self.id: str = kept.get("id") or uuid.uuid4().hex[:8]
        self._kept: dict[str, dict[str, int]] = kept.get("told", {})
        self._now: dict[str, dict[str, int]] = {name: dict(steps) for name, steps in self._kept.items()}
        self._held: list[tuple[float, str, str, int]] = []

    def knows(self, name: str, event: Mapping[str, Any]) -> bool:
        """Whether a tracker was told this event, or a later one of its kind."""
        highest = self._now.get(name, {}).get(_kind(event), -1)
        return int(event["step"]) <= highest

    def highest(self, name: str) -> int:
        """The highest step that a tracker was told, -1 where it knows nothing."""
        return max(self._now.get(name, {}).values(), default=-1)

    def add(self, name: str, event: Mapping[str, Any]) -> None:
        """A tracker was told this event."""
        kind, step = _kind(event), int(event["step"])
        self._now.setdefault(name, {})[kind] = step
        self._held.append((self._clock() + HELD.get(name, 0.0), name, kind, step))

    def save(self, closed: str | None = None) -> None:
        """Write down what is safe by now, all of a tracker that was `closed`; raises StorageError."""
        now = self._clock()
        safe = [each for each in self._held if each[0] <= now or each[1] == closed]
        self._held = [each for each in self._held if each not in safe]
        for _, name, kind, step in safe:
            self._kept.setdefault(name, {})[kind] = step
        write_text(self._path, json.dumps({"id": self.id, "told": self._kept}, indent=2) + "\n")


def _kind(event: Mapping[str, Any]) -> str:
    """Curves of their own: scores in training, the final one before, the final one after."""
    return "/".join(filter(None, (event["type"], event.get("adapter"))))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"id": str(found["id"]), "told": {n: dict(steps) for n, steps in found["told"].items()}}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
