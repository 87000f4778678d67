"""trackio: in its own local database, or on the Space or server that its `TRACKIO_*` variables name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trackio

from sdpo_mlx.runs.tracking.base import PROJECT, RunLocation, numbers


def open_run(place: RunLocation) -> Trackio:
    """Begin the run, or go on with it under its name, which holds its id: trackio knows runs by name."""
    name = f"{place.name}-{place.id}"
    return Trackio(trackio.init(PROJECT, name=name, config=dict(place.config), resume="allow", embed=False))


class Trackio:
    """A row an event; warnings are its alerts."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, event: Mapping[str, Any]) -> None:
        """One row of numbers, or an alert."""
        step = int(event["step"])
        if event["type"] == "warning":
            self._run.alert("warning", text=event["message"], level=trackio.AlertLevel.WARN, step=step)
        else:
            self._run.log(numbers(event), step=step)

    def close(self, finished: bool) -> None:  # noqa: ARG002 - its runs know no end
        """Write the rest out."""
        self._run.finish()
