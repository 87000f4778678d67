"""Keys and values of transformers' caches: a prefix computed once and shared, rows added and removed.

Layers of every kind keep all their keys here; the masks, not the cache, implement sliding windows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache as remembered
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

from sdpo_mlx.backends.base import PREFILL

Layers = list[tuple[Tensor, Tensor]]  # keys and values (n, heads, length, width) a layer; n = 1 for a shared prefix


def prefill(body: nn.Module, ids_1P: Tensor, before: Layers | None = None) -> Layers:
    """Run a prompt once, in pieces, after the prefix before it."""
    cache = cache_of(before or [])
    for start in range(0, ids_1P.shape[1], PREFILL):
        body(input_ids=ids_1P[:, start : start + PREFILL], use_cache=True, **given(body, cache))
    return layers_of(cache)


def given(body: nn.Module, cache: DynamicCache) -> dict[str, DynamicCache]:
    """The keyword argument for a cache: transformers 5.24 renamed `past_key_values` to `cache`."""
    return {_cache_name(type(body).forward): cache}


@remembered
def _cache_name(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def cache_of(layers: Layers, rows: int = -1) -> DynamicCache:
    """A cache of these keys and values, or of `rows` that all begin with this prefix: not copied, gradients flow."""
    cache = DynamicCache()
    for keys, values in [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in layers]:
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
    length = max(cache.get_seq_length() for cache in caches)

    def rows(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(each, (0, 0, length - each.shape[2], 0)) for each in tensors])

    layers = zip(*map(layers_of, caches), strict=True)
    return cache_of([(rows([k for k, _ in layer]), rows([v for _, v in layer])) for layer in layers])
