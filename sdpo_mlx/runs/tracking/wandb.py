"""Weights & Biases: online if logged in, otherwise offline in the run folder; `WANDB_*` variables win."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import wandb

from sdpo_mlx.runs.tracking.base import PROJECT, RunLocation, numbers

# No terminal output, and network timeouts; unsent data stays in the folder for `wandb sync`.
QUIET: Mapping[str, Any] = {
    "silent": True,
    "console": "off",
    "init_timeout": 60.0,
    "finish_timeout": 45.0,
    "finish_timeout_raises": True,
}


def open_run(location: RunLocation) -> WeightsAndBiases:
    """Start or resume the run under its id."""
    settings = wandb.Settings(**_unless_set(QUIET))
    wandb.setup(settings=settings)
    run = {"project": PROJECT, "name": location.name, "dir": str(location.folder), "resume": "allow"}
    given = {**_unless_set(run), **_unless_set({"id": location.id}, "WANDB_RUN_")}
    if not wandb.login(prompt=False, verify=False):
        given |= _unless_set({"mode": "offline"})
    return WeightsAndBiases(wandb.init(config=dict(location.config), settings=settings, **given))


def _unless_set(values: Mapping[str, Any], prefix: str = "WANDB_") -> dict[str, Any]:
    return {name: value for name, value in values.items() if f"{prefix}{name.upper()}" not in os.environ}


class WeightsAndBiases:
    """One row per event, `step` on the x axis."""

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("*", step_metric="step")

    def log(self, event: Mapping[str, Any]) -> None:
        """Send one row; a warning is a text in it."""
        values = {"warning": event["message"]} if event["type"] == "warning" else numbers(event)
        self._run.log({"step": int(event["step"]), **values})

    def close(self, finished: bool) -> None:
        """Send the rest within `finish_timeout`."""
        self._run.finish(exit_code=0 if finished else 1)
