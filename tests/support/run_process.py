"""A training process for the survival tests: `python run_process.py FOLDER SETTINGS HOOK`.

It does what `sdpo train` does, without the showing. SETTINGS is the configuration as JSON; HOOK says where it
hits itself with a signal: `{"place": "put", "count": 3, "signal": 9}` (null: nowhere). It tells on stdout when
training begins, so that the parent can aim from outside.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdpo_mlx.backends.mlx import policy
from sdpo_mlx.config import Config
from sdpo_mlx.core import storage
from sdpo_mlx.core.errors import SdpoError
from sdpo_mlx.core.interrupt import Interrupt
from sdpo_mlx.rl import rollouts
from sdpo_mlx.rl.components import build_components
from sdpo_mlx.runs import checkpoint, events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.trainer import fit
from sdpo_mlx.training.session import TrainingSession

# Where a signal can fall: the owner of the function, its name, and what the run is doing then.
PLACES: dict[str, tuple[Any, str]] = {
    "generation": (rollouts, "_rollout"),  # a rollout has just ended, others go on
    "gradient": (policy, "gradient"),
    "apply": (policy.MLXPolicy, "_step"),
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


def run(folder: Path, settings: str, hooked: str) -> int:
    """Train in `folder`; the exit code that the command line gives."""
    cfg = Config.model_validate_json(settings)
    if where := json.loads(hooked):
        hook(where["place"], where["count"], where["signal"], where.get("times", 1))
    try:
        with RunFolder.open(folder) as opened, Interrupt() as interrupt:
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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
    sys.exit(run(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
