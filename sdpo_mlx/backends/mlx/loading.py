"""Loads a folder of safetensors and checks that the model can be split and batched without changing its output.

mlx-lm reads the weights; remote code and pickles were refused before (`models/resolve.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sdpo_mlx.backends.mlx.mlx_lm_api import load_model, make_prompt_cache
from sdpo_mlx.backends.mlx.model import Model, SplitModel, check_parity
from sdpo_mlx.config import ModelConfig
from sdpo_mlx.core.errors import ConfigError

BATCH_TOLERANCE = 2e-2  # as model.PARITY_TOLERANCE


def load(path: Path, cfg: ModelConfig) -> tuple[Model, dict[str, Any]]:
    """Return the model in evaluation mode and its config; raise ConfigError if it cannot be read or trained."""
    try:
        whole, config = load_model(path, lazy=True)
        # The CPU's 16-bit products are twenty times slower than its float32 ones.
        dtype = "float32" if cfg.dtype == "auto" and device_name() == "cpu" else cfg.dtype
        if dtype != "auto":
            whole.set_dtype(getattr(mx, dtype))
        whole.eval()
        mx.eval(whole.parameters())  # lazy loading finds a truncated file only here
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"the model cannot be loaded: {' '.join(str(error).split())[:200] or type(error).__name__}",
            where=path.name,
            fix="use a folder with config.json and safetensors of an architecture that mlx-lm knows",
        ) from error
    text = config.get("text_config", config)
    vocabulary = int(text.get("vocab_size") or whole.args.vocab_size)
    trunk = SplitModel(whole)
    shares = check_parity(whole, trunk, vocabulary)
    check_batching(whole, vocabulary)
    return Model(whole, trunk, vocabulary, shares), text


def check_batching(whole: nn.Module, vocab_size: int) -> float:
    """Return the largest difference in probability between a row decoded alone and beside a longer one.

    Raise ConfigError if they differ: rollouts would depend on their neighbours (mlx-lm 1906, 1908).
    """
    long, short = [(i * 31 + 7) % vocab_size for i in range(9)], [(i * 17 + 3) % vocab_size for i in range(4)]
    caches = []
    for ids in (long, short):
        cache = make_prompt_cache(whole)
        whole(mx.array([ids[:-1]]), cache=cache)
        caches.append(cache)
    try:
        merged = [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
    except (AttributeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            "this model's cache cannot be batched", where="model.name", fix="use another model"
        ) from error
    together = mx.softmax(whole(mx.array([[long[-1]], [short[-1]]]), cache=merged)[1, -1].astype(mx.float32))
    alone = mx.softmax(whole(mx.array([[short[-1]]]), cache=caches[1])[0, -1].astype(mx.float32))
    worst = float(np.array(mx.max(mx.abs(together - alone))))
    if not worst <= BATCH_TOLERANCE:
        raise ConfigError(
            f"rollouts of this model depend on their neighbours in the batch (by {worst:.1e} in probability)",
            where="model.name",
            fix="use another model, or a newer mlx-lm",
        )
    return worst


def device_name() -> str:
    """Return `gpu` on Metal, otherwise `cpu`."""
    return "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
