"""trackio: in its local database, or on the Space or server that `TRACKIO_*` variables name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trackio

from sdpo_mlx.runs.tracking.base import PROJECT, RunLocation, numbers


def open_run(location: RunLocation) -> Trackio:
    """Start or resume the run; trackio identifies runs by name, so the name contains the id."""
    name = f"{location.name}-{location.id}"
    return Trackio(trackio.init(PROJECT, name=name, config=dict(location.config), resume="allow", embed=False))


class Trackio:
    """One row per event; warnings become alerts."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, event: Mapping[str, Any]) -> None:
        """Send one row of numbers, or an alert."""
        step = int(event["step"])
        if event["type"] == "warning":
            self._run.alert("warning", text=event["message"], level=trackio.AlertLevel.WARN, step=step)
        else:
            self._run.log(numbers(event), step=step)

    def close(self, finished: bool) -> None:  # noqa: ARG002 - trackio runs have no end status
        """Flush and close."""
        self._run.finish()
