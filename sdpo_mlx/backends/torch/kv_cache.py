"""Transformers' caches without writes in place: a prefix computed once and shared, rows added and removed.

A layer keeps keys and values, the states of a convolution and of a recurrence, or both; each is replaced by a new
tensor, so that gradients flow through a prefix and rows may share it without a copy. Layers of every kind keep all
their keys; the masks, not the cache, implement sliding windows and chunks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache as remembered
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import (
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from sdpo_mlx.backends.base import PREFILL


class StatesLayer(LinearAttentionLayer):
    """States of a convolution and a recurrence, assigned where transformers' layer writes into its buffers."""

    def __init__(self, number_of_states: int = 1) -> None:
        super().__init__(number_of_states=number_of_states)
        self.record_past = True  # models then leave out the kernels that update a state in place

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        """Append the inputs (N, d, T), keep as many as the kernel is long, and return all from there on."""
        if not self.has_previous_state[state_idx]:
            width = conv_kernel_size or conv_states.shape[-1]
            whole = pad(conv_states, (max(0, width - conv_states.shape[-1]), 0))
            self.conv_kernel_size[state_idx] = width
            self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True
        else:
            whole = torch.cat([self.conv_states[state_idx], conv_states], dim=-1)
        self.conv_states[state_idx] = whole[..., -self.conv_kernel_size[state_idx] :]
        return whole

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        """Replace the state."""
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states


class StatesAndKeysLayer(StatesLayer, LinearAttentionAndFullAttentionLayer):
    """The same beside the keys and values of an attention."""

    def __init__(self, number_of_states: int = 1) -> None:
        DynamicLayer.__init__(self)
        StatesLayer.__init__(self, number_of_states)


class _Held(Tensor):
    """A state as models see it: what they copy into it replaces it in the cache, and it keeps its own numbers."""

    place: tuple[dict[int, Tensor], int]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.copy_ and isinstance(args[0], _Held):
            states, index = args[0].place
            states[index] = args[1]
            return args[1]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class StatesCache(DynamicCache):
    """A cache whose states models may write to: a step of one token does, beside the rows that share the state."""

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """See `Cache.get_conv_state`."""
        layer = self.layers[layer_idx]
        return _held(layer.conv_states, state_idx) if layer.has_previous_state[state_idx] else None

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """See `Cache.get_recurrent_state`."""
        layer = self.layers[layer_idx]
        return _held(layer.recurrent_states, state_idx) if layer.has_previous_state[state_idx] else None


def _held(states: dict[int, Tensor], index: int) -> Tensor | None:
    if states[index] is None:
        return None
    states[index] = states[index].clone()  # a compiled kernel writes into the memory itself
    held = states[index].as_subclass(_Held)
    held.place = (states, index)
    return held


_LAYERS: dict[type, Callable[[Any], Any]] = {
    DynamicLayer: lambda _: DynamicLayer(),
    DynamicSlidingWindowLayer: lambda _: DynamicLayer(),
    LinearAttentionLayer: lambda layer: StatesLayer(layer.number_of_states),
    LinearAttentionAndFullAttentionLayer: lambda layer: StatesAndKeysLayer(layer.number_of_states),
    LinearAttentionAndSlidingWindowAttentionLayer: lambda layer: StatesAndKeysLayer(layer.number_of_states),
    DummyLayer: lambda _: DummyLayer(),
}


def new_cache(body: nn.Module) -> DynamicCache:
    """An empty cache for this body. Raise KeyError if a layer keeps something else than keys and states."""
    cache = StatesCache(config=body.config)
    cache.layers = [_LAYERS[type(layer)](layer) for layer in cache.layers]
    return cache


def prefill(body: nn.Module, ids_1P: Tensor, before: DynamicCache | None = None, pieces: bool = True) -> DynamicCache:
    """Run a prompt once after the prefix before it, in pieces unless the model cannot continue with several tokens."""
    cache = new_cache(body) if before is None else shared(before, 1)
    for ids in ids_1P.split(PREFILL if pieces else ids_1P.shape[1], dim=1):
        continued(body, ids, cache)
    return cache


def continued(body: nn.Module, ids_NT: Tensor, cache: DynamicCache, **options: Any) -> Any:
    """What the body returns for rows that continue from a cache, which grows by them.

    Positions are those after the cache unless given. A body without positions or masks gets none.
    """
    names, before = arguments(type(body).forward), keys_in(cache)
    after = torch.arange(before, before + ids_NT.shape[1], device=ids_NT.device).expand(ids_NT.shape)
    known = {name: each for name, each in ({"position_ids": after} | options).items() if name in names}
    # Transformers 5.24 renamed `past_key_values`.
    known["cache" if "cache" in names else "past_key_values"] = cache
    return body(input_ids=ids_NT, use_cache=True, **known)


@remembered
def arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """Names of a function's parameters."""
    return frozenset(inspect.signature(forward).parameters)


def shared(cache: DynamicCache, rows: int) -> DynamicCache:
    """A cache of `rows` that all begin with this prefix of one row: not copied, gradients flow."""
    return _mapped([cache], lambda tensors, _: tensors[0].expand(rows, *tensors[0].shape[1:]))


def emptied(cache: DynamicCache) -> DynamicCache:
    """A cache of no tokens in the shapes of one that has some; every recurrence begins at 0."""
    return _mapped([cache], lambda tensors, keys: tensors[0][:, :, :0] if keys else torch.zeros_like(tensors[0]))


def selected(cache: DynamicCache, rows: Tensor, width: int) -> DynamicCache:
    """A cache of some of the rows and the last `width` keys of each; the given one is emptied layer by layer."""
    extra = max(0, keys_in(cache) - width)
    return _mapped(
        [cache], lambda tensors, keys: (tensors[0][:, :, extra:] if keys else tensors[0])[rows], consume=True
    )


def joined(*caches: DynamicCache) -> DynamicCache:
    """Join the rows of several caches, their keys padded on the left to the longest.

    The given ones are emptied layer by layer, so that old and new are never held at once.
    """
    length = max(map(keys_in, caches))

    def rows(tensors: Sequence[Tensor], keys: bool) -> Tensor:
        return torch.cat([pad(each, (0, 0, length - each.shape[2], 0)) for each in tensors] if keys else list(tensors))

    return _mapped(caches, rows, consume=True)


def row_bytes(cache: DynamicCache) -> tuple[int, int]:
    """Bytes of one row: its keys and values per token, and its states."""
    sizes: dict[bool, list[int]] = {True: [], False: []}

    def count(tensors: Sequence[Tensor], keys: bool) -> Tensor:
        sizes[keys].append(tensors[0][0].numel() * tensors[0].element_size())
        return tensors[0]

    _mapped([cache], count)
    return sum(sizes[True]) // max(1, keys_in(cache)), sum(sizes[False])


def keys_in(cache: DynamicCache) -> int:
    """How many keys each row has, padding included; 0 without attention."""
    found = (getattr(layer, "keys", None) for layer in cache.layers)
    return next((keys.shape[2] for keys in found if keys is not None), 0)


def _mapped(
    caches: Sequence[DynamicCache], change: Callable[[Sequence[Tensor], bool], Tensor], *, consume: bool = False
) -> DynamicCache:
    """A cache whose every tensor is `change(the caches' tensors there, whether they are keys or values)`.

    With `consume` the caches lose each layer as soon as its successor exists, whose memory is then free.
    """
    result = copy(caches[0])
    result.layers = []
    for place, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        new = copy(layers[0])
        for name, value in vars(new).items():
            here = [vars(layer)[name] for layer in layers]
            if isinstance(value, dict):  # of one state each
                states = {i: [each[i] for each in here] for i in value}
                changed = {i: change(s, False) if isinstance(s[0], Tensor) else s[0] for i, s in states.items()}
                setattr(new, name, changed)
            elif isinstance(value, Tensor):
                setattr(new, name, change(here, True))
        result.layers.append(new)
        for cache in caches if consume else ():
            cache.layers[place] = None
    return result
