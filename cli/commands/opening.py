"""What commands that open a model share: the components with their messages, and an end after Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.config import Config
    from sdpo_mlx.rl.components import Components


def open_components(cfg: Config, plain: bool, target: str | None = None, adapter: Path | None = None) -> Components:
    """Build the components, showing progress and warnings; a `target` is opened with its adapter."""
    from sdpo_mlx.rl.components import build_components
    from sdpo_mlx.runs.targets import open_target

    with render.status(f"loading {cfg.model.name}", plain) as start_task:
        if target is None:
            components = build_components(cfg, start_task=start_task)
        else:
            components = open_target(target, cfg, adapter, start_task)
    render.message(components.model.line())
    render.warn(components.warnings())
    return components


@contextmanager
def interruptible(resume: str = "") -> Iterator[Callable[[], bool]]:
    """Yield the function that says whether a signal came; one ends the command with its code and a message.

    `resume` is the sentence that says how to continue.
    """
    from sdpo_mlx.core.interrupt import Interrupt

    with Interrupt() as interrupt:
        try:
            yield interrupt.requested
        except KeyboardInterrupt:
            render.message(f"sdpo: interrupted. {resume}".rstrip())
            raise typer.Exit(interrupt.exit_code or 130) from None
