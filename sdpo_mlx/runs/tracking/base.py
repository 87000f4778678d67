"""What a tracker is: it hears events and is closed; it may fail as it likes (`trackers/company.py` sees to that)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "sdpo-mlx"
MEASURED = frozenset({"step", "eval", "forgetting", "run_finished"})  # events that hold numbers
_NO_MEASURE = frozenset({"time", "step", "adapter_step"})


@dataclass(frozen=True)
class RunLocation:
    """Where a tracker's run belongs; `id` and `told`, the highest step it was told (-1: none), outlive a stop."""

    folder: Path
    id: str
    config: Mapping[str, Any]
    told: int = -1

    @property
    def name(self) -> str:
        """The run folder's name, what people know the run by."""
        return self.folder.name


class Tracker(Protocol):
    """One tracker's run. Both methods are called from one thread, the one that opened it."""

    def log(self, event: Mapping[str, Any]) -> None:
        """Take an event as `events.jsonl` has it: one of `MEASURED`, or a `warning`."""

    def close(self, finished: bool) -> None:
        """Write out what is held; `finished` tells a run that came to its end from one that was stopped."""


def numbers(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event under their flat names; null, NaN and what is no number are left out.

    The two final scores and the end of the run stand under `final/`: they are no points of a curve in training.
    """
    prefix = "final/" if event.get("final") or event["type"] == "run_finished" else ""
    return {
        f"{prefix}{name}": value
        for name, value in event.items()
        if name not in _NO_MEASURE
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A tree of settings as dotted keys with their values."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
