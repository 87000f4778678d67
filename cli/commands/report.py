"""`sdpo report RUN`: one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sdpo_cli import completion, options
from sdpo_cli.terminal import render


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="A run folder; several are overlaid.", autocompletion=completion.runs),
    ],
    *,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: RUN/report.html.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write one HTML file with curves and token heat maps of a run.

    Example: sdpo report runs/first
    """
    from sdpo_mlx.core.storage import write_text
    from sdpo_mlx.runs.report.collect import read_runs
    from sdpo_mlx.runs.report.html import page

    found = read_runs(runs)
    text, place = page(found), out or runs[0] / "report.html"
    write_text(place, text)
    render.warn([f"{run.name}: {problem}" for run in found for problem in run.problems])
    shown = [{"run": s.name, "steps": len(s.steps), "rollouts": len(s.rollouts)} for s in found]
    content = {"file": str(place), "bytes": len(text.encode()), "runs": shown}
    render.output(content, [f"wrote {place} ({render.size(content['bytes'])}); open it in a browser"], as_json)
