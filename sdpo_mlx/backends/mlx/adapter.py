"""The trainable weights: adapter layers on a frozen base, as one flat dict of named arrays.

Student and teacher are two such dicts over one model; `active` swaps the arrays in. Nothing else of the
model is copied, so that the self-teacher costs one more adapter and not one more model.
"""

from __future__ import annotations

import re
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
LINEAR = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding)
# Gemma 3n reads the weights of `altup` itself; indexers choose tokens to attend to, which has no gradient.
NOT_ADAPTED = re.compile(r"\b(altup|indexer)\.")


def has_experts(model: nn.Module) -> bool:
    """Return whether the model routes tokens to experts."""
    return any(hasattr(module, "num_experts") for module in model.modules())


def layer_keys(model: nn.Module, cfg: AdapterConfig) -> tuple[str, ...] | None:
    """Return the names inside a layer that get an adapter; None for mlx-lm's default, all linear layers.

    Routers of experts keep their choice, and a linear layer whose weight the model reads itself cannot be replaced.
    """
    if cfg.keys is not None or cfg.kind == "full":
        return None if cfg.keys is None else tuple(cfg.keys)
    found, left_out = set[str](), set[str]()
    for layer in model.layers:
        modules = dict(layer.named_modules())
        experts = {path: module.num_experts for path, module in modules.items() if hasattr(module, "num_experts")}
        for path, module in modules.items():
            is_expert = path in experts and "weight" in module
            if not (is_expert or isinstance(module, LINEAR) or hasattr(module, "to_lora")):
                continue
            block = path.rpartition(".")[0]
            routes = any(
                getattr(module, "weight", mx.zeros(0)).shape[:1] == (count,) and f"{other}.".startswith(f"{block}.")
                for other, count in experts.items()
            )
            (left_out if (routes and not is_expert) or NOT_ADAPTED.search(path) else found).add(path)
    return tuple(sorted(found - left_out)) if left_out else None


def attach(model: nn.Module, cfg: AdapterConfig, seed: int) -> Weights:
    """Freeze the base, add the adapter's layers, and return the trainable arrays by name (float32).

    Raise ConfigError for full fine-tuning of a quantized base, or if `keys` match no layer.
    """
    mx.random.seed(seed)
    if cfg.kind == "full":
        if any(isinstance(m, (nn.QuantizedLinear, nn.QuantizedEmbedding)) for m in model.modules()):
            raise ConfigError(
                "a quantized base cannot be trained in full", where="model.adapter.kind", fix="use lora or dora"
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


class dropout:  # noqa: N801  reads as a statement
    """Inside, the adapter's dropout is on, with the same mask forwards and backwards."""

    def __init__(self, whole: nn.Module, seed: int) -> None:
        self.whole, self.seed = whole, seed

    def __enter__(self) -> None:
        self.whole.train()
        mx.random.seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        self.whole.eval()
