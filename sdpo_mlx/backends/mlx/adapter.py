"""The trainable weights: adapter layers on a frozen base, as one flat dict of named arrays.

Student and teacher are two such dicts over one model; `active` swaps the arrays in. Nothing else of the
model is copied, so that the self-teacher costs one more adapter and not one more model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten, tree_unflatten

from sdpo_mlx.backends.learner import adapted_layers, check_arrays, lora_parameters
from sdpo_mlx.backends.mlx.mlx_lm_api import linear_to_lora_layers
from sdpo_mlx.config import AdapterConfig
from sdpo_mlx.core.errors import ConfigError

Weights = dict[str, mx.array]


def attach(model: nn.Module, cfg: AdapterConfig, seed: int) -> Weights:
    """Freeze the base, add the adapter's layers, and return the trainable arrays by name (float32).

    Raise ConfigError for full fine-tuning of a quantised base, or if `keys` match no layer.
    """
    mx.random.seed(seed)
    if cfg.kind == "full":
        if any(isinstance(m, (nn.QuantizedLinear, nn.QuantizedEmbedding)) for m in model.modules()):
            raise ConfigError(
                "a quantised base cannot be trained in full", where="model.adapter.kind", fix="use lora or dora"
            )
        # Small updates vanish in 16 bits: the trained copy is float32.
        model.set_dtype(mx.float32)
        model.unfreeze()
    else:
        model.freeze()
        try:
            layers = adapted_layers(cfg, len(model.layers))
            linear_to_lora_layers(model, layers, lora_parameters(cfg), use_dora=cfg.kind == "dora")
        except ValueError as error:
            fix = "use lora, or name other layers in model.adapter.keys"
            raise ConfigError(str(error).rstrip("."), where="model.adapter.kind", fix=fix) from error
    weights = {name: array.astype(mx.float32) for name, array in tree_flatten(model.trainable_parameters())}
    if not weights:
        raise ConfigError(
            f"no layer matches {cfg.keys}", where="model.adapter.keys", fix="name linear layers, as self_attn.q_proj"
        )
    assign(model, weights)
    mx.eval(weights)
    return weights


def assign(model: nn.Module, weights: Mapping[str, mx.array]) -> None:
    """Set the model's arrays by name."""
    model.update(tree_unflatten(list(weights.items())))


@contextmanager
def active(model: nn.Module, weights: Mapping[str, mx.array], resting: Mapping[str, mx.array]) -> Iterator[None]:
    """Run a block with `weights` in the model; `resting` is restored whatever happens."""
    assign(model, weights)
    try:
        yield
    finally:
        assign(model, resting)


def to_numpy(weights: Mapping[str, mx.array]) -> dict[str, npt.NDArray[Any]]:
    """Return numpy copies."""
    return {name: np.array(array) for name, array in weights.items()}


def from_numpy(arrays: Mapping[str, npt.NDArray[Any]], like: Mapping[str, mx.array], what: str) -> Weights:
    """Return MLX arrays; raise ConfigError unless names and shapes are those of `like`."""
    check_arrays(arrays, {name: array.shape for name, array in like.items()}, what)
    return {name: mx.array(arrays[name]) for name in like}
