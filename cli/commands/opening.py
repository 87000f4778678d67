"""What commands that open a model share: the components with their messages, and an end after Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.config import Config
    from sdpo_mlx.core.interrupt import Interrupt
    from sdpo_mlx.rl.components import Components


def open_components(cfg: Config, plain: bool, target: str | None = None, adapter: Path | None = None) -> Components:
    """Build the components, showing progress and warnings; a `target` is opened with its adapter."""
    from sdpo_mlx.backends.fit import download_notice
    from sdpo_mlx.rl.components import build_components
    from sdpo_mlx.runs.targets import open_target

    if notice := download_notice(cfg):
        render.message(notice)
    with render.status(f"loading {cfg.model.name}", plain) as start_task:
        if target is None:
            components = build_components(cfg, start_task=start_task)
        else:
            components = open_target(target, cfg, adapter, start_task)
    render.message(components.model.line())
    render.warn(components.warnings())
    return components


@contextmanager
def interruptible(
    ending: Callable[[], str] = lambda: ".", leave: Callable[[int], object] = os._exit
) -> Iterator[Interrupt]:
    """Yield the flag that signals set; an interrupted command ends with its code and a message.

    `ending` returns the end of the message: what was saved, and how to resume.
    """
    from sdpo_mlx.core.errors import EXIT_INTERRUPTED
    from sdpo_mlx.core.interrupt import Interrupt

    with Interrupt(leave=leave) as interrupt:
        try:
            yield interrupt
        except KeyboardInterrupt:
            render.message(f"sdpo: interrupted{ending()}")
            raise typer.Exit(interrupt.exit_code or EXIT_INTERRUPTED) from None
