"""Opens the chosen backend; the other is never imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdpo_mlx.backends.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sdpo_mlx.backends.learner import Learner
from sdpo_mlx.config import MemoryConfig, ModelConfig, RolloutConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.vocabulary import check_token_ids

ON_TORCH = "on PyTorch: `sdpo export RUN --to peft`, then `vllm serve BASE --enable-lora`, as the export says"


def open_policy(
    path: Path,
    model: ModelConfig,
    teacher: TeacherConfig,
    train: TrainConfig,
    memory: MemoryConfig | None = None,
    rollout: RolloutConfig | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Learner:
    """Open the base at `path` with fresh, equal student and teacher adapters; raise ConfigError without the backend.

    `rollout` chooses what samples on torch; without it that is the loop. With `model.shard` the base is split over the
    ranks of `group`, all of which call this.
    """
    check_token_ids(path)
    if model.backend == "torch":
        try:
            from sdpo_mlx.backends.torch.policy import TorchPolicy
        except ImportError as error:
            fix = "pip install 'sdpo-mlx[torch]'"
            raise ConfigError(f"torch cannot be imported: {error}", where="model.backend", fix=fix) from error
        return TorchPolicy(path, model, teacher, train, rollout, group)
    if rollout is not None and rollout.engine != "auto":
        fix = "leave it at auto, or use --backend torch"
        raise ConfigError("mlx samples with its own engine", where="rollout.engine", fix=fix)
    if model.shard:
        fix = "use --backend torch under torchrun, or a quantized model that fits"
        raise ConfigError("mlx does not split a base over ranks", where="model.shard", fix=fix)
    if model.bits is not None:
        fix = "use a model that is quantized already (mlx_lm.convert -q makes one), or --backend torch"
        raise ConfigError("mlx does not quantize a base while loading it", where="model.bits", fix=fix)
    try:
        from sdpo_mlx.backends.mlx.policy import MLXPolicy
    except ImportError as error:
        fix = "install sdpo-mlx on macOS or Linux, or use --backend torch"
        raise ConfigError(f"mlx cannot be imported: {error}", where="model.backend", fix=fix) from error
    return MLXPolicy(path, model, teacher, train, memory)


def server() -> tuple[Callable[..., Any], Callable[..., None]]:
    """Return what describes a served model and what serves it (`mlx/server.py`); raise ConfigError without mlx."""
    try:
        from sdpo_mlx.backends.mlx.server import Served, serve
    except ImportError as error:
        raise ConfigError(f"serving needs mlx, which cannot be imported: {error}", fix=ON_TORCH) from error
    return Served, serve
