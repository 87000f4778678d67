"""Weights & Biases: online where one is logged in, else offline in the run folder; its `WANDB_*` variables win."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import wandb

from sdpo_mlx.runs.tracking.base import PROJECT, RunLocation, numbers

# Nothing on the terminal, and an end to waiting for the network; what wasn't sent stays in the folder for `wandb sync`.
QUIET: Mapping[str, Any] = {
    "silent": True,
    "console": "off",
    "init_timeout": 60.0,
    "finish_timeout": 45.0,
    "finish_timeout_raises": True,
}


def open_run(place: RunLocation) -> WeightsAndBiases:
    """Begin the run, or go on with it under its id."""
    settings = wandb.Settings(**_unless_set(QUIET))
    wandb.setup(settings=settings)
    where = {"project": PROJECT, "name": place.name, "dir": str(place.folder), "resume": "allow"}
    given = {**_unless_set(where), **_unless_set({"id": place.id}, "WANDB_RUN_")}
    if not wandb.login(prompt=False, verify=False):
        given |= _unless_set({"mode": "offline"})
    return WeightsAndBiases(wandb.init(config=dict(place.config), settings=settings, **given))


def _unless_set(values: Mapping[str, Any], prefix: str = "WANDB_") -> dict[str, Any]:
    return {name: value for name, value in values.items() if f"{prefix}{name.upper()}" not in os.environ}


class WeightsAndBiases:
    """A row an event, `step` on the x axis."""

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("*", step_metric="step")

    def log(self, event: Mapping[str, Any]) -> None:
        """One row; a warning is a text in it."""
        said = {"warning": event["message"]} if event["type"] == "warning" else numbers(event)
        self._run.log({"step": int(event["step"]), **said})

    def close(self, finished: bool) -> None:
        """Send the rest, for as long as `finish_timeout` allows."""
        self._run.finish(exit_code=0 if finished else 1)
