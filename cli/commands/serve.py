"""`sdpo serve`: mlx-lm's OpenAI-compatible server with a run's adapter."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render


def command(
    target: options.Target,
    *,
    adapter: options.Adapter = None,
    host: Annotated[
        str, typer.Option("--host", metavar="NAME", help="Address to listen on; 0.0.0.0: all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65535, help="Port to listen on.")] = 8080,
    sets: options.Sets = None,
) -> None:
    """Serve the model with its adapter through an OpenAI-compatible API until Ctrl-C.

    Example: sdpo serve runs/first --port 8080
    """
    from sdpo_mlx.backends.preflight import checked_model
    from sdpo_mlx.backends.registry import server
    from sdpo_mlx.models.chat_template import load_chat
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.runs.targets import adapter_home, target_config

    home = adapter_home(target, adapter)
    cfg = target_config(target, adapter, sets or [])
    if home is not None:
        RunFolder(home).load_adapter()
    serve = server()
    model = checked_model(cfg.model.name, backend=cfg.model.backend)
    source = load_chat(model.path, template=cfg.model.chat_template).source
    render.warn(source.warnings)
    render.message(f"{model.line()}{f', adapter {home}' if home else ''}")
    render.message(
        f"http://{host}:{port}/v1/chat/completions is ready when the model is loaded; Ctrl-C stops the server"
    )
    render.message("no authentication: expose it only to users you trust")
    template = "" if source.own else source.texts[0]
    serve(model.path, home, host, port, template=template, stop=source.stop, memory=cfg.memory)
    # MLX aborts in Python's normal exit after a thread that computed has ended.
    sys.stderr.flush()
    os._exit(0)
