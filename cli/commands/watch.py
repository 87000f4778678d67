"""`sdpo watch RUN`: the live view of a run that another process makes, or of a finished one."""

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

PAUSE = 0.5  # seconds between two looks at the file
LAST = {
    "step": "the last step",
    "eval": "the last score",
    "run_started": "its start",
    "resumed": "it went on",
    "forgetting": "forgetting was measured",
    "checkpoint": "it was saved",
    "warning": "a warning",
}
HOW_ON = {"stopped": "; the command that began it goes on", "finished": "; `sdpo report` shows all of it"}


def command(
    run: options.RunFolder,
    *,
    once: Annotated[bool, typer.Option("--once", help="Show how it stands and leave.")] = False,
    plain: options.Plain = False,
) -> None:
    """Watch a run from another terminal until it ends; Ctrl-C leaves it running.

    Example: sdpo watch runs/first --once
    """
    from sdpo_cli.terminal.live import watching
    from sdpo_cli.terminal.progress import Progress

    from sdpo_mlx.core.interrupt import Interrupt
    from sdpo_mlx.runs.status import EventFollower, is_running, runs_in, state_of

    steps = runs_in(run)[0].steps  # one line where there is no run
    follower, progress = EventFollower(run / "events.jsonl"), Progress(_header(run, steps))
    with Interrupt() as interrupt, watching(progress, plain) as observe:
        while not interrupt.requested():
            alive = is_running(run)
            for event in follower.new():
                # a coached folder has as many steps as lessons so far
                progress.header = replace(progress.header, steps=max(progress.header.steps, event["step"]))
                observe(event, ())
                progress.work.doing(f"since {LAST.get(event['type'], event['type'])}")
                if event["type"] == "step":
                    progress.sample = _sample(run, event["step"]) or progress.sample
            if once or not alive:
                break
            time.sleep(PAUSE)
    if interrupt.requested():
        raise typer.Exit(interrupt.exit_code)
    found = state_of(run)
    render.say(f"{found.state} at step {found.step} of {found.steps}{HOW_ON.get(found.state, '')}")


def _header(run: Path, steps: int) -> Any:
    """What the run's own settings say; where it runs stands in its manifest."""
    from sdpo_cli.terminal.progress import Header

    from sdpo_mlx.core.errors import SdpoError
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.runs.targets import run_config

    cfg = run_config(run)
    try:
        told = RunFolder(run).read_manifest().get("policy")
    except SdpoError:
        told = None
    policy = told if isinstance(told, dict) else {}
    return Header(
        model=cfg.model.name,
        task=cfg.task.name,
        objective=cfg.objective.kind,
        teacher=cfg.teacher.kind,
        device=" ".join(str(policy.get(name, "?")) for name in ("backend", "device", "dtype")),
        out=str(run),
        steps=steps,
        rollouts=cfg.rollout.problems_per_step * cfg.rollout.group_size,
    )


def _sample(run: Path, step: int) -> Sample | None:
    """A failure with feedback of this step, as the live view of the run itself shows."""
    from sdpo_cli.terminal.progress import Sample

    from sdpo_mlx.core.errors import StorageError
    from sdpo_mlx.runs.folder import RunFolder

    try:
        rows = RunFolder(run).read_rollouts(step)
    except StorageError:  # being written
        return None
    row = next((row for row in rows if not row.get("success") and row.get("feedback")), rows[0] if rows else None)
    if row is None:
        return None
    try:
        problem = row["prompt"][-1]["content"]
    except (KeyError, IndexError, TypeError):
        problem = row.get("problem")
    return Sample(str(problem), str(row.get("answer")), str(row.get("kind")), str(row.get("feedback")))
