"""Which backend runs; each is imported only when it was chosen."""

from __future__ import annotations

from pathlib import Path

from sdpo_mlx.backends.base import Policy
from sdpo_mlx.config import ModelConfig, TeacherConfig, TrainConfig
from sdpo_mlx.errors import ConfigError


def open_policy(path: Path, model: ModelConfig, teacher: TeacherConfig, train: TrainConfig) -> Policy:
    """The base at `path` with fresh, equal student and teacher adapters; raises ConfigError without mlx."""
    try:
        from sdpo_mlx.backends.mlx import policy
    except ImportError as error:
        raise ConfigError(
            f"mlx cannot be imported: {error}", where="model.backend", fix="install sdpo-mlx on macOS or Linux"
        ) from error
    return policy.open_policy(path, model, teacher, train)
