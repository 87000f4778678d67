"""`sdpo serve`: an OpenAI-compatible server for a model and its adapter."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

from sdpo_mlx.core.errors import ConfigError


def command(
    target: options.Target,
    *,
    adapter: options.Adapter = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="NAME", help="Address to listen on; other than this machine's: with --api-key."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65535, help="Port to listen on.")] = 8080,
    api_key: Annotated[
        str,
        typer.Option("--api-key", metavar="KEY", envvar="SDPO_API_KEY", help="Key that each request must have."),
    ] = "",
    backend: options.Backend = None,
    sets: options.Sets = None,
) -> None:
    """Serve the model with its adapter through an OpenAI-compatible API until Ctrl-C.

    MLX computes, also for a run that was trained on torch.

    Example: sdpo serve runs/first --port 8080
    """
    from sdpo_mlx.backends.preflight import checked_model
    from sdpo_mlx.backends.registry import ON_TORCH, server
    from sdpo_mlx.models import adapter_folder
    from sdpo_mlx.models.chat_template import load_chat
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.runs.targets import adapter_home, target_config

    home = adapter_home(target, adapter)
    cfg = target_config(target, adapter, sets or [], options.settings(backend=backend))
    if backend == "torch":  # a run that was trained on torch is served by MLX, with the same base and adapter
        fix = f"leave it out, or `sdpo chat {target} --backend torch`; {ON_TORCH}"
        raise ConfigError("sdpo serve computes with MLX", where="--backend torch", fix=fix)
    if not api_key and not _is_loopback(host):
        fix = "set --api-key KEY or SDPO_API_KEY, or leave --host out to serve this machine only"
        raise ConfigError("other machines could use this server without a key", where=f"--host {host}", fix=fix)
    warnings = adapter_folder.warnings(RunFolder(home).load_adapter()[0]) if home is not None else ()
    served, serve = server()
    model = checked_model(cfg.model.name, backend=cfg.model.backend)
    render.warn((*warnings, *load_chat(model.path, template=cfg.model.chat_template).source.warnings))
    render.message(f"{model.line()}{f', adapter {home}' if home else ''}")
    base, name = _names(cfg.model.name, home)

    def ready() -> None:
        shown = f"[{host}]" if ":" in host else host
        render.message(f"http://{shown}:{port}/v1 answers; Ctrl-C stops the server")
        render.message(f"models: {', '.join([name, base] if home else [base])}")

    serve(served(model.path, cfg.model, base, home, name, cfg.memory), host, port, api_key, ready, render.message)
    # MLX aborts in Python's normal exit after a thread that computed has ended.
    sys.stderr.flush()
    os._exit(0)


def _names(model: str, home: Path | None) -> tuple[str, str]:
    """Return the names of the base and of its adapter for clients."""
    base = Path(model).name if Path(model).exists() else model
    name = home.resolve().name if home is not None else ""
    return base, f"{name}-adapter" if name == base else name


def _is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address; True for one that cannot be resolved, which fails later."""
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)}
    except OSError:
        return True
    return all(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in found)
