"""`sdpo push`: upload a run's adapter and model card to the Hugging Face Hub."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

from sdpo_mlx.core.text import display


def command(
    run: options.RunFolder,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub.")],
    *,
    public: Annotated[bool, typer.Option("--public", help="Public repository; default: private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Upload a run's adapter and model card to the hub, after confirmation.

    Example: sdpo push runs/first me/first-adapter
    """
    from sdpo_mlx.runs.export import hub

    upload = hub.plan_upload(run, repository)
    render.warn(upload.warnings)
    visibility = "public" if public else "private"
    if not yes:  # asked on stderr, since stdout is for results; the end of input means no
        sys.stderr.write(f"{display(f'upload {upload.summary()}, {visibility}?')} [y/N]: ")
        sys.stderr.flush()
        reply = sys.stdin.readline()
        if not reply.endswith("\n"):
            sys.stderr.write("\n")
        if reply.strip().lower() not in ("y", "yes"):
            render.message("nothing was uploaded")
            raise typer.Exit(1)
    address = hub.push(run, upload, public=public)
    lines = [f"uploaded {', '.join(upload.files)} to {address} ({visibility})"]
    render.output({"address": address, "files": list(upload.files), "public": public}, lines, as_json)
