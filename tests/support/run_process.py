"""What the child process of a survival test runs: `sdpo train` without its display.

A hook such as `{"place": "put", "count": 3, "signal": 9}` sends a signal to the process itself before that call; with
`"aborts": True` the device says that it may end the process, as a GPU does.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from few_prompts import FEW

from sdpo_mlx.backends.mlx import policy
from sdpo_mlx.config import Config
from sdpo_mlx.core import storage
from sdpo_mlx.core.errors import SdpoError
from sdpo_mlx.core.interrupt import Interrupt
from sdpo_mlx.evaluation import forgetting
from sdpo_mlx.rl import rollouts
from sdpo_mlx.rl.components import build_components
from sdpo_mlx.runs import checkpoint, events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.trainer import fit
from sdpo_mlx.training.session import TrainingSession

# Where a signal can fall: the owner of the function, its name, and what the run is doing then.
PLACES: dict[str, tuple[Any, str]] = {
    "generation": (rollouts, "to_rollout"),  # a rollout has just ended, others go on
    "gradient": (policy.MLXPolicy, "gradient"),
    "apply": (policy.MLXPolicy, "optimizer_step"),
    "teacher": (policy.MLXPolicy, "update_teacher"),
    "event": (events.EventLog, "emit"),
    "score": (TrainingSession, "score"),
    "adapter": (RunFolder, "save_adapter"),
    "rollouts": (RunFolder, "write_rollouts"),
    "fill": (checkpoint, "_fill"),
    "put": (checkpoint, "put"),
    "swap": (checkpoint, "_swap"),
    "prune": (checkpoint, "_prune"),
    "fsync": (storage, "sync"),
}


def hook(place: str, count: int, number: int, times: int = 1) -> None:
    """Before the `count`-th call of a place, send `number` to this process, `times` in a row."""
    owner, name = PLACES[place]
    inner: Callable[..., Any] = getattr(owner, name)
    calls = itertools.count(1)

    def hit(*args: Any, **kwargs: Any) -> Any:
        for _ in range(times if next(calls) == count else 0):
            os.kill(os.getpid(), number)
        return inner(*args, **kwargs)

    setattr(owner, name, hit)


def fake_gpu() -> None:
    """Let the CPU say that it ends the process when memory or the watchdog's patience runs out."""
    info = policy.MLXPolicy.info.func  # type: ignore[attr-defined]
    policy.MLXPolicy.info = property(lambda self: replace(info(self), aborts=True))  # type: ignore[assignment]


def run(folder: str, settings: str, hooked: Mapping[str, Any] | None) -> int:
    """Train in `folder`; return the exit code of the command line. "ready" on stdout means that training begins."""
    cfg = Config.model_validate_json(settings)
    forgetting._general = lambda: FEW
    if hooked and hooked.get("aborts"):
        fake_gpu()
    if hooked and "place" in hooked:
        hook(hooked["place"], hooked["count"], hooked["signal"], hooked.get("times", 1))
    try:
        with RunFolder.open(Path(folder)) as opened, Interrupt() as interrupt:
            try:
                setup = build_components(cfg)
                print("ready", flush=True)
                fit(setup, opened, lambda *_: None, interrupt.requested)
            except KeyboardInterrupt:
                return interrupt.exit_code
    except SdpoError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    return 0
