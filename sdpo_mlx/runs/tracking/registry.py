"""Which trackers there are, whether their packages are here, and how one is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.runs.tracking.base import RunLocation, Tracker


def check(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose package is missing; imports none of them."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # without an origin: a folder of that name, such as wandb leaves
            fix = f"run pip install 'sdpo-mlx[{name}]', or leave it out"
            raise ConfigError(f"{name} is not installed", where="log.sinks", fix=fix)


def open_tracker(name: str, place: RunLocation) -> Tracker:
    """Open a tracker's run; raises whatever its package raises."""
    opened: Callable[[RunLocation], Tracker] = import_module(f"sdpo_mlx.runs.tracking.{name}").open_run
    return opened(place)
