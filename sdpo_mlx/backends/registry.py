"""Which backend runs; each is imported only when it was chosen."""

from __future__ import annotations

from pathlib import Path

from sdpo_mlx.backends.learner import Learner
from sdpo_mlx.config import ModelConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError


def open_policy(path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> Learner:
    """The base at `path` with fresh, equal student and teacher adapters; raises ConfigError without the backend."""
    return _torch(path, model, teacher, train) if model.backend == "torch" else _mlx(path, model, teacher, train)


def _mlx(path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> Learner:
    if model.bits is not None:
        fix = "name a model that is quantised already (mlx_lm.convert -q makes one), or take --backend torch"
        raise ConfigError("mlx does not quantise a base while loading it", where="model.bits", fix=fix)
    try:
        from sdpo_mlx.backends.mlx import policy
    except ImportError as error:
        fix = "install sdpo-mlx on macOS or Linux, or take --backend torch"
        raise ConfigError(f"mlx cannot be imported: {error}", where="model.backend", fix=fix) from error
    return policy.open_policy(path, model, teacher, train)


def _torch(path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> Learner:
    try:
        from sdpo_mlx.backends.torch import policy
    except ImportError as error:
        fix = "pip install 'sdpo-mlx[torch]'"
        raise ConfigError(f"torch cannot be imported: {error}", where="model.backend", fix=fix) from error
    return policy.open_policy(path, model, teacher, train)


def serve(base: Path, adapter: Path | None, host: str, port: int) -> None:
    """mlx-lm's server on one base, with its adapter; returns when it is interrupted.

    Raises ConfigError without mlx, or where the port is taken.
    """
    try:
        from sdpo_mlx.backends.mlx import server
    except ImportError as error:
        fix = "on PyTorch: `sdpo export RUN --to peft`, then `vllm serve BASE --enable-lora`, as the export says"
        raise ConfigError(f"serving needs mlx, which cannot be imported: {error}", fix=fix) from error
    server.serve(base, adapter, host, port)
