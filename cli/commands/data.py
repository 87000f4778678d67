"""`sdpo data`: check your rows line by line."""

from __future__ import annotations

from typing import Annotated

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

app = typer.Typer(help="Check your rows.", no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Check your rows."""


@app.command("check")
def check(
    rows: Annotated[str, typer.Argument(metavar="FILE", help="A file of rows, hub:NAME, or humaneval.")],
    task: options.TaskName = None,
    as_json: options.AsJson = False,
) -> None:
    """List every bad row with its line number.

    Exit code 3 if there is a bad row.

    Example: sdpo data check problems.jsonl --task code
    """
    from sdpo_mlx.core.errors import DataError
    from sdpo_mlx.tasks.data.check import check_rows

    checked = check_rows(rows, task)
    bad = [{"line": row.line, "place": row.place, "what": row.what} for row in checked.bad]
    content = {"ok": not bad, "source": checked.source, "task": checked.task, "rows": checked.rows}
    content |= {"splits": dict(checked.splits), "bad": bad}
    good = ", ".join(f"{count} {split}" for split, count in sorted(checked.splits.items(), reverse=True))
    head = f"{checked.rows} rows read as {checked.task}: {len(checked.bad)} bad; problems: {good or 'none'}"
    lines = [head, *(line for name in checked.named() for line in render.untrusted(name, 500))]
    render.output(content, lines, as_json)
    if checked.bad:
        raise typer.Exit(DataError.exit_code)
