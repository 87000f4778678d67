"""`sdpo runs`: a table of runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.runs.status import RunState

DAY = 86_400


def command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of runs, or one run.")] = Path("runs"),
    *,
    as_json: options.AsJson = False,
) -> None:
    """List the runs in a folder, latest first.

    Example: sdpo runs
    """
    from sdpo_mlx.runs.status import runs_in

    found = runs_in(folder)
    heads = ("run", "state", "model", "task", "steps", "held-out", "gain", "last event")
    lines = render.table(heads, [as_row(run, time.time()) for run in found])
    render.output({"runs": [as_document(run) for run in found]}, lines, as_json)


def as_document(run: RunState) -> dict[str, Any]:
    """Everything of one run; scores are shares of 1."""
    mean, low, high = run.difference
    return {
        "run": str(run.path),
        "state": run.state,
        "model": run.model,
        "task": run.task,
        "step": run.step,
        "steps": run.steps,
        "generations": run.generations,
        "before": run.before,
        "after": run.after,
        "difference": {"mean": mean, "low": low, "high": high},
        "time": run.time,
    }


def as_row(run: RunState, now: float) -> tuple[str, ...]:
    """Return the row of the table."""
    if run.state == "damaged":
        return (run.path.name, "damaged", *"------")
    mean, low, high = run.difference
    gain = "-" if mean is None else f"{100 * mean:+.1f}{render.span(low, high, '+.1f')}"
    scores = "-" if run.before is None else f"{render.percent(run.before)} to {render.percent(run.after)}"
    done = f"{run.step}" if run.state == "coached" else f"{run.step}/{run.steps}"
    age = now - run.time
    ago = f"{age / DAY:.0f} d ago" if age >= DAY else f"{render.duration(age)} ago"
    return run.path.name, run.state, run.model, run.task, done, scores, gain, ago
