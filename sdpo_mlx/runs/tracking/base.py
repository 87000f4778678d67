"""The interface of a tracker. It may raise or hang; `runs/tracking/manager.py` handles that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sdpo_mlx.runs.events import number

PROJECT = "sdpo-mlx"
MEASURED = frozenset({"step", "eval", "forgetting", "run_finished"})  # events with numbers
_NOT_METRICS = frozenset({"time", "step", "adapter_step"})


@dataclass(frozen=True)
class RunLocation:
    """The run for a tracker; `id` and `last_step`, the highest step already sent (-1: none), persist over resumes."""

    folder: Path
    id: str
    config: Mapping[str, Any]
    last_step: int = -1

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.folder.name


class Tracker(Protocol):
    """One tracker's run. Both methods are called from the thread that opened it."""

    def log(self, event: Mapping[str, Any]) -> None:
        """Send an event as `events.jsonl` has it: one of `MEASURED`, or a `warning`."""

    def close(self, finished: bool) -> None:
        """Flush and close; `finished` is False for a run that was interrupted."""


def numbers(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of an event under their flat names.

    The two final scores and the end of the run get the prefix `final/`: they are not points of a training curve.
    """
    prefix = "final/" if event.get("final") or event["type"] == "run_finished" else ""
    return {
        f"{prefix}{name}": value
        for name, value in event.items()
        if name not in _NOT_METRICS and number(value) is not None
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a tree of settings as dotted keys with their values."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
