"""A training run that is killed after its first checkpoint and resumed, against one that runs through.

Each process is `sdpo train` on the embedded model, started by `posix_spawn`: this process may have loaded Metal, and
such a process must not fork.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from sdpo_mlx.core.text import clean
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.sandbox.base import RunResult
from sdpo_mlx.sandbox.launch import launch_spawned

STEPS = 3
SECONDS = 300.0  # of wall clock, and of processor time, for one process: it takes 5 s on two CPU cores
TRIES = 3  # to kill before the last step is saved
# Where the device may sum in another order each time: a share of the last step's change. AdamW moves a weight whose
# gradient is rounding alone by a whole step, and a state that was lost changes every weight.
NOT_BITWISE = 0.1
LINES, WIDTH = 2, 200  # shown of what a process wrote before it failed; a beginning, so that no path is cut open
PROGRAM = "import sys; from sdpo_cli.main import main; sys.exit(main())"
# In float32 without TF32, so that the smaller passes after a crash on a GPU draw the same tokens.
OPTIONS = {
    "model.name": "tiny",
    "model.dtype": "float32",
    "task.name": "tiny",
    "rollout.problems_per_step": 2,
    "rollout.group_size": 4,
    "rollout.max_tokens": 24,
    "train.steps": STEPS,
    "train.save_every": 1,
    "train.eval_every": 0,
    "train.learning_rate": 5e-3,
    "train.probe": "false",
    "train.on_decline": "warn",  # a rollback would need a checkpoint before the first step
    "eval.problems": 2,
    "eval.samples": 1,
    "log.samples": 1,
    "log.teacher_answers": 0,
}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "MLX_ENABLE_TF32": "0"}
Arrays = Mapping[str, Any]


class KilledRun(NamedTuple):
    """How far the resumed run ended from the other one, as a share of the last step's change, and the bound.

    `killed_at` is the checkpoint that it resumed from; `differs` names what else is not equal.
    """

    killed_at: int
    gap: float
    bound: float
    differs: str


def compare() -> KilledRun:
    """Train, kill, resume and train again in a temporary folder; raises RuntimeError with what a process wrote."""
    with TemporaryDirectory(prefix="sdpo-self-test-") as name:
        folder = Path(name)
        killed_at = kill(folder / "killed")
        for run in (folder / "killed", folder / "whole"):
            _check(_train(run))
        whole, resumed = (_loaded(folder / each) for each in ("whole", "killed"))
        before = checkpoint.load_step(folder / "whole" / "checkpoints", STEPS - 1).state["student"]
        bitwise = whole.meta["place"][1] == "cpu"
        gap = distance(resumed.state["student"], whole.state["student"]) / distance(whole.state["student"], before)
        differs = next(differences(folder / "whole", folder / "killed", exact=bitwise), "")
        return KilledRun(killed_at, gap, 0.0 if bitwise else NOT_BITWISE, differs)


def kill(run: Path) -> int:
    """Start a run, end it with SIGKILL once it has a checkpoint, and return that checkpoint's step."""
    saved = run / "checkpoints"
    for _ in range(TRIES):
        shutil.rmtree(run, ignore_errors=True)
        result = _train(run, lambda _: bool(checkpoint.steps(saved)))
        if result.code != -signal.SIGKILL or result.status != "signal":
            _check(result)
        elif 0 < (step := max(checkpoint.steps(saved), default=0)) < STEPS:
            return step
    raise RuntimeError(f"the run of {STEPS} steps ended before it could be killed, {TRIES} times")


def _check(result: RunResult) -> None:
    """Raise RuntimeError with the last lines of stderr if the process failed."""
    if result.status == "exited" and result.code == 0:
        return
    how = {"exited": f"exit code {result.code}", "signal": f"signal {-result.code}"}.get(result.status, result.status)
    lines = [line.strip() for line in clean(result.stderr.decode("utf-8", "replace"), None).splitlines()]
    said = " | ".join(line[:WIDTH] for line in [line for line in lines if line][-LINES:])
    raise RuntimeError(f"sdpo train failed ({how}): {said or 'it wrote nothing'}")


def _train(run: Path, over: Callable[[int], bool] | None = None) -> RunResult:
    """Train in that folder until the process ends or `over(pid)` is true, which kills it."""
    sets = [f"--set={key}={value}" for key, value in OPTIONS.items()]
    argv = [sys.executable, "-P", "-c", PROGRAM, "train", "--plain", "--json", "--out", str(run), *sets]
    env = {**os.environ, **ENVIRONMENT, "SDPO_HOME": str(run.with_name("home"))}
    return launch_spawned(argv, b"", SECONDS, env=env, over=over)


def _loaded(run: Path) -> checkpoint.Loaded:
    last = checkpoint.load(run / "checkpoints")
    if last is None or last.step != STEPS or last.warnings:
        raise RuntimeError(f"the run left no sound checkpoint of step {STEPS}")
    return last


def distance(some: Arrays, others: Arrays) -> float:
    """Return the norm of the difference of all arrays; infinite if a name is missing."""
    if set(some) != set(others):
        return float("inf")
    return float(np.sqrt(sum(((some[n].astype(np.float64) - others[n]) ** 2).sum() for n in some)))


def differences(whole: Path, resumed: Path, *, exact: bool) -> Iterator[str]:
    """Name what differs between two runs; without `exact` only steps and scores that are missing or too many."""
    ours, theirs = (list(_events(run, exact)) for run in (whole, resumed))
    if ours != theirs:
        at = next((e["step"] for e, other in zip(ours, theirs, strict=False) if e != other), STEPS)
        yield f"the events of step {at} differ" if exact else "steps or scores are missing or told twice"
    if exact:
        states = [_loaded(run).state for run in (whole, resumed)]
        for part in states[0]:
            if any(array.tobytes() != states[1][part][name].tobytes() for name, array in states[0][part].items()):
                yield f"the {part}'s arrays differ"
        if len({(run / "adapters.safetensors").read_bytes() for run in (whole, resumed)}) > 1:
            yield "the adapters differ"


def _events(run: Path, exact: bool) -> Iterator[dict[str, Any]]:
    """Steps and scores without clocks and memory."""
    for event in read_events(run / "events.jsonl"):
        if event["type"] in ("step", "eval"):
            names = event if exact else ("type", "step")
            yield {n: event[n] for n in names if n != "time" and not n.startswith(("time/", "memory/"))}
