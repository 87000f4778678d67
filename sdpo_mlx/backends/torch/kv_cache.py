"""Keys and values of transformers' caches: a prefix computed once and shared, rows added and removed.

Layers of every kind keep all their keys here; the masks, not the cache, implement sliding windows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as remembered
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

from sdpo_mlx.backends.base import PREFILL

Layers = list[tuple[Tensor, Tensor]]  # keys and values (n, heads, length, width) a layer


@dataclass(frozen=True)
class Prefix:
    """The cache of a shared prompt, once (n = 1)."""

    layers: Layers

    def cache(self, rows: int) -> DynamicCache:
        """A cache for this many rows that all begin with this prefix; nothing is copied, gradients flow."""
        return cache_of([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.layers])


def prefill(body: nn.Module, ids_1P: Tensor, before: Prefix | None = None) -> Prefix:
    """Run a prompt once, in pieces, after the prefix before it."""
    cache = DynamicCache() if before is None else before.cache(1)
    for start in range(0, ids_1P.shape[1], PREFILL):
        body(input_ids=ids_1P[:, start : start + PREFILL], use_cache=True, **given(body, cache))
    return Prefix(layers_of(cache))


def given(body: nn.Module, cache: DynamicCache) -> dict[str, DynamicCache]:
    """The keyword argument for a cache: transformers 5.24 renamed `past_key_values` to `cache`."""
    return {_cache_name(type(body).forward): cache}


@remembered
def _cache_name(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def cache_of(layers: Layers) -> DynamicCache:
    """A cache that holds these keys and values."""
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # assigned directly: `update` would copy them
        cache.layers.append(layer)
    return cache


def layers_of(cache: DynamicCache) -> Layers:
    """The keys and values of a cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def joined(*caches: DynamicCache) -> DynamicCache:
    """Join the rows of several caches, padded on the left to the longest."""
    parts = [layers_of(cache) for cache in caches]
    length = max(part[0][0].shape[2] for part in parts)

    def padded(tensor: Tensor) -> Tensor:
        return pad(tensor, (0, 0, length - tensor.shape[2], 0))

    return cache_of(
        [
            (torch.cat([padded(part[i][0]) for part in parts]), torch.cat([padded(part[i][1]) for part in parts]))
            for i in range(len(parts[0]))
        ]
    )
