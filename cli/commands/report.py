"""`sdpo report RUN`: one HTML file that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sdpo_cli import completion, options
from sdpo_cli.terminal import render


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="A run folder; several are laid over each other.", autocompletion=completion.runs
        ),
    ],
    *,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: RUN/report.html.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what a run did, token by token, in one HTML file.

    Example: sdpo report runs/first
    """
    from sdpo_mlx.core.storage import write_text
    from sdpo_mlx.runs.report.collect import read_runs
    from sdpo_mlx.runs.report.html import page

    found = read_runs(runs)
    text, place = page(found), out or runs[0] / "report.html"
    write_text(place, text)
    render.warn([f"{run.name}: {problem}" for run in found for problem in run.problems])
    if as_json:
        shown = [{"run": s.name, "steps": len(s.steps), "rollouts": len(s.rollouts)} for s in found]
        render.document({"file": str(place), "bytes": len(text.encode()), "runs": shown})
    else:
        render.result([f"wrote {place} ({render.size(len(text.encode()))}); open it in a browser"])
