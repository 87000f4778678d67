"""Which backend runs; each is imported only when it was chosen."""

from __future__ import annotations

from pathlib import Path

from sdpo_mlx.backends.base import Policy
from sdpo_mlx.config import ModelConfig, TeacherConfig, TrainConfig
from sdpo_mlx.errors import ConfigError


def open_policy(path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> Policy:
    """The base at `path` with fresh, equal student and teacher adapters; raises ConfigError without the backend."""
    return _torch(path, model, teacher, train) if model.backend == "torch" else _mlx(path, model, teacher, train)


def _mlx(path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> Policy:
    try:
        from sdpo_mlx.backends.mlx import policy
    except ImportError as error:
        fix = "install sdpo-mlx on macOS or Linux, or take --backend torch"
        raise ConfigError(f"mlx cannot be imported: {error}", where="model.backend", fix=fix) from error
    return policy.open_policy(path, model, teacher, train)


def _torch(path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> Policy:
    try:
        from sdpo_mlx.backends.torch import policy
    except ImportError as error:
        fix = "pip install 'sdpo-mlx[torch]'"
        raise ConfigError(f"torch cannot be imported: {error}", where="model.backend", fix=fix) from error
    return policy.open_policy(path, model, teacher, train)
