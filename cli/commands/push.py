"""`sdpo push`: a run's adapter and card to a model hub, after asking."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

from sdpo_mlx.core.text import display


def _agreed(question: str) -> bool:
    """Whether the person says yes; asked on stderr, since stdout is for results. The end of input is a no."""
    sys.stderr.write(f"{display(question)} [y/N]: ")
    sys.stderr.flush()
    said = sys.stdin.readline()
    if not said.endswith("\n"):
        sys.stderr.write("\n")
    return said.strip().lower() in ("y", "yes")


def command(
    run: options.RunFolder,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub.")],
    *,
    public: Annotated[bool, typer.Option("--public", help="Visible to everybody; private otherwise.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Send a run's adapter and model card to a hub; asks first.

    Example: sdpo push runs/first me/first-adapter
    """
    from sdpo_mlx.runs.export import hub

    sending = hub.parcel(run, repository)
    seen = "public" if public else "private"
    if not yes and not _agreed(f"send {hub.described(sending)}, {seen}?"):
        render.say("nothing was sent")
        raise typer.Exit(1)
    address = hub.push(run, sending, public=public)
    if as_json:
        render.document({"address": address, "files": list(sending.files), "public": public})
    else:
        render.result([f"sent {', '.join(sending.files)} to {address} ({seen})"])
