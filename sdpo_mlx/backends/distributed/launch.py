"""The process group of this process: what `torchrun` or `mlx.launch` started, found by their environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sdpo_mlx.backends.distributed.process_group import SINGLE_PROCESS, ProcessGroup, RankGroup
from sdpo_mlx.core.errors import ConfigError


def open_process_group(environ: Mapping[str, str] = os.environ) -> ProcessGroup:
    """Return the ranks that `torchrun` or `mlx.launch` started; SINGLE_PROCESS without a launcher."""
    if "MASTER_ADDR" in environ and int(environ.get("WORLD_SIZE", "1")) > 1:
        try:
            from sdpo_mlx.backends.torch.collectives import TorchCollectives
        except ImportError as error:
            fix = "pip install 'sdpo-mlx[torch]'"
            raise ConfigError(f"torch cannot be imported: {error}", where="torchrun", fix=fix) from error
        return RankGroup(TorchCollectives())
    hosts = environ.get("MLX_HOSTFILE")
    ring = hosts is not None and Path(hosts).stat().st_size > 1  # a single host: mlx.launch writes an empty file
    if "MLX_RANK" in environ and (ring or "MLX_JACCL_COORDINATOR" in environ):
        try:
            from sdpo_mlx.backends.mlx.collectives import MLXCollectives
        except ImportError as error:
            raise ConfigError(f"mlx cannot be imported: {error}", where="mlx.launch", fix="install sdpo-mlx") from error
        return RankGroup(MLXCollectives())
    return SINGLE_PROCESS


def backend_on(group: ProcessGroup, backend: str) -> str:
    """Return the backend of a run in this group; raise ConfigError if its launcher belongs to another backend."""
    if group.size == 1 or backend in ("auto", group.backend):
        return backend if group.size == 1 else group.backend
    launcher = {"torch": "torchrun", "mlx": "mlx.launch"}
    raise ConfigError(
        f"{launcher[group.backend]} starts the {group.backend} backend, not {backend}",
        where="model.backend",
        fix=f"use --backend {group.backend}, or start with {launcher[backend]}",
    )
