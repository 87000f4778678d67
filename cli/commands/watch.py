"""`sdpo watch RUN`: the live view of a run in another process, or of a finished run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_cli.terminal.progress import Sample

POLL_SECONDS = 0.5
EVENTS = {
    "step": "the last step",
    "eval": "the last evaluation",
    "run_started": "the start",
    "resumed": "resuming",
    "forgetting": "measuring forgetting",
    "checkpoint": "the last checkpoint",
    "warning": "a warning",
    "decline": "the decline of the held-out score",
}
NEXT = {
    "stopped": ". Run the command that started it again to resume",
    "finished": ". `sdpo report` shows the whole run",
}


def command(
    run: options.RunFolder,
    *,
    once: Annotated[bool, typer.Option("--once", help="Show the current state and exit.")] = False,
    plain: options.Plain = False,
) -> None:
    """Watch a run from another terminal until it ends. Ctrl-C stops watching, not the run.

    Example: sdpo watch runs/first --once
    """
    from sdpo_cli.terminal.live_view import run_view
    from sdpo_cli.terminal.progress import Progress

    from sdpo_mlx.core.interrupt import Interrupt
    from sdpo_mlx.runs.status import EventFollower, is_running, runs_in, state_of

    steps = runs_in(run)[0].steps  # raises if there is no run
    follower = EventFollower(run / "events.jsonl")
    progress = Progress(_header(run, steps), keys="Ctrl-C stops watching, not the run")
    with Interrupt() as interrupt, run_view(progress, plain) as observe:
        while not interrupt.requested():
            alive = is_running(run)
            for event in follower.new():
                # a coached run has one step per lesson so far
                progress.header = replace(progress.header, steps=max(progress.header.steps, event["step"]))
                observe(event, ())
                progress.tasks.start(f"since {EVENTS.get(event['type'], event['type'])}")
                if event["type"] == "step":
                    progress.sample = _sample(run, event["step"]) or progress.sample
            if not alive:
                progress.ended = state_of(run).state
                progress.tasks.start("")
            if once or not alive:
                break
            time.sleep(POLL_SECONDS)
    if interrupt.requested():
        raise typer.Exit(interrupt.exit_code)
    found = state_of(run)
    render.message(f"{found.state} at step {found.step} of {found.steps}{NEXT.get(found.state, '')}")


def _header(run: Path, steps: int) -> Any:
    """Read the run's settings, and its device from the manifest."""
    from sdpo_cli.terminal.progress import Header

    from sdpo_mlx.core.errors import SdpoError
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.runs.targets import run_config

    cfg = run_config(run)
    try:
        policy = RunFolder(run).read_manifest().get("policy")
    except SdpoError:
        policy = None
    policy = policy if isinstance(policy, dict) else {}
    device = " ".join(str(policy.get(name, "?")) for name in ("backend", "device", "dtype"))
    return replace(Header.of(cfg, device, run), steps=steps)


def _sample(run: Path, step: int) -> Sample | None:
    """Return a failed rollout with feedback of this step, as the live view of the run shows it."""
    from sdpo_cli.terminal.progress import Sample

    from sdpo_mlx.core.errors import StorageError
    from sdpo_mlx.runs.folder import RunFolder

    try:
        rows = RunFolder(run).read_rollouts(step)
    except StorageError:  # not complete yet
        return None
    row = next((row for row in rows if not row.get("success") and row.get("feedback")), rows[0] if rows else None)
    if row is None:
        return None
    try:
        problem = row["prompt"][-1]["content"]
    except (KeyError, IndexError, TypeError):
        problem = row.get("problem")
    return Sample(str(problem), str(row.get("answer")), str(row.get("kind")), str(row.get("feedback")))
