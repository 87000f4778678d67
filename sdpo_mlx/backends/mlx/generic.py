"""Body and head of a model whose parts are unknown: the second way of learning, beside block by block (`model.py`).

The module that owns the layers is the body. While it is stubbed to return given hidden states, the whole model is its
own head, with its scales and soft-caps; while it is cut after its output, the whole model is its own embedding. Layers
run as the model calls them, with caches that only concatenate, so that windows, shared keys and values, per-layer
inputs and recurrent states need no knowledge of names, and rows continue from a shared prompt inside the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from sdpo_mlx.backends.mlx.adapter import dropout
from sdpo_mlx.backends.mlx.mlx_lm_api import ArraysCache, CacheList, ConcatenateKVCache, make_prompt_cache
from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.core.seeding import derive

CACHES = (ConcatenateKVCache, ArraysCache, CacheList)


class GenericSplit:
    """Body and head of any mlx-lm model; the counterpart of `SplitModel`.

    `caches`: whether the body is called with caches, which shared prompts need; some models run only without.
    """

    way = "generic"

    def __init__(self, whole: nn.Module, *, caches: bool = True) -> None:
        self.whole, self.caches = whole, caches
        self.owner, path = _owner(whole)
        self.paths = tuple(f"{path}.{i}." for i in range(len(whole.layers)))

    def head(self, hidden_RD: mx.array) -> mx.array:
        """The body's output (R, d) to logits (R, V)."""
        ids_1R = mx.zeros((1, hidden_RD.shape[0]), dtype=mx.int32)
        with _called(self.owner, lambda *_, **__: hidden_RD[None]):
            return self.whole(ids_1R)[0]

    def forward(self, unit: Unit) -> mx.array:
        """See `SplitModel.forward`."""
        hidden_RD = self._hidden(unit)
        mx.eval(hidden_RD)
        return hidden_RD

    def graph(self, unit: Unit, seed: int, *, recompute: bool) -> mx.array:
        """Return `forward` for a gradient, with dropout; `recompute`: each layer runs again on the way back."""
        with ExitStack() as stack:
            for index, layer in enumerate(self.whole.layers):
                run = partial(_layer, self.whole, layer, derive(seed, index), recompute)
                stack.enter_context(_called(layer, partial(run, type(layer).__call__)))
            return self._hidden(unit)

    def _hidden(self, unit: Unit) -> mx.array:
        """The body's output at the positions that predict the responses, (R, d)."""
        caches: list[Any] = []
        rows = []
        for node in unit.nodes:
            cache = None
            if node.parent is not None:
                cache = [_broadcast(each, len(node.ids_NT)) for each in caches[node.parent]]
            elif self.caches:
                cache = [_functional(each) for each in make_prompt_cache(self.whole)]
            hidden = _output(self.owner, self.whole, mx.array(node.ids_NT), cache)
            caches.append(None if node.rows else cache)
            if node.rows:
                rows.append(hidden.reshape(-1, hidden.shape[-1]))
        return (rows[0] if len(rows) == 1 else mx.concatenate(rows))[mx.array(unit.take_R)]


class _HeadSkippedError(Exception):
    """Ends a model's call after its body."""


def _output(module: nn.Module, whole: nn.Module, ids_NT: mx.array, cache: list[Any] | None) -> mx.array:
    """Return what a module inside the model returns when the model is called; LookupError if it is not called."""
    call, found = type(module).__call__, list[mx.array]()

    def run(*args: Any, **kwargs: Any) -> None:
        found.append(call(module, *args, **kwargs))
        raise _HeadSkippedError

    with _called(module, run), suppress(_HeadSkippedError):
        whole(ids_NT, cache=cache)
    if not found:
        raise LookupError("the module around its layers is not called")
    return found[0]


class WindowKVCache(ConcatenateKVCache):  # type: ignore[misc]  # mlx-lm has no types
    """Keys and values of every token, for layers that attend to a window of them."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def make_mask(self, *args: Any, **kwargs: Any) -> Any:
        """Return mlx-lm's mask; the default window is the cache's own, as with mlx-lm's rotating cache."""
        return super().make_mask(*args, **{**kwargs, "window_size": kwargs.get("window_size") or self.window})


def _functional(cache: Any, arrays: Sequence[Any] = ()) -> Any:
    """Return a cache of the same kind whose updates have a gradient, empty or with `_arrays` of another."""
    if isinstance(cache, CacheList):
        left = iter(arrays)
        return CacheList(
            *(_functional(each, [next(left) for _ in _arrays(each)] if arrays else ()) for each in cache.caches)
        )
    if isinstance(cache, ArraysCache):
        found = ArraysCache(len(cache.cache))
        found.cache = list(arrays) or found.cache
        return found
    window = getattr(cache, "max_size", None) or getattr(cache, "window", None)
    found = WindowKVCache(window) if window else ConcatenateKVCache()
    if arrays and arrays[0] is not None:
        found.state = tuple(arrays)
    return found


def _arrays(cache: Any) -> list[Any]:
    """Return what a functional cache holds; None for what is not there yet."""
    if isinstance(cache, CacheList):
        return [array for each in cache.caches for array in _arrays(each)]
    return list(cache.cache) if isinstance(cache, ArraysCache) else [cache.keys, cache.values]


def _broadcast(cache: Any, rows: int) -> Any:
    """Return a cache for so many rows that continue from another cache of one row."""
    return _functional(cache, [a if a is None else mx.broadcast_to(a, (rows, *a.shape[1:])) for a in _arrays(cache)])


@dataclass(frozen=True)
class _Output:
    """Stands for one of a layer's distinct arrays."""

    index: int


def _layer(whole: nn.Module, layer: nn.Module, seed: int, recompute: bool, call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a layer as a function of its weights, its arguments and its caches' arrays; caches are updated as usual."""
    caches = list[Any]()
    tree_map(lambda each: caches.append(each) if isinstance(each, CACHES) else None, (args, kwargs))

    def run(weights: Any, args: Any, kwargs: Any, states: Any) -> Any:
        layer.update(weights)
        copies = {id(cache): _functional(cache, arrays) for cache, arrays in zip(caches, states, strict=True)}
        args, kwargs = tree_map(lambda each: copies.get(id(each), each), (args, kwargs))
        with dropout(whole, seed):
            out = call(layer, *args, **kwargs)
        # Each array once: the gradient of one that mx.checkpoint (0.32.4) returns twice lacks the second's part.
        unique: dict[int, mx.array] = {}
        result = (out, [_arrays(copy) for copy in copies.values()])
        tree_map(lambda each: unique.update({id(each): each} if isinstance(each, mx.array) else {}), result)
        keys = list(unique)
        return list(unique.values()), tree_map(lambda e: _Output(keys.index(id(e))) if id(e) in unique else e, result)

    states = [_arrays(cache) for cache in caches]
    found, result = (mx.checkpoint(run) if recompute else run)(layer.trainable_parameters(), args, kwargs, states)
    out, states = tree_map(lambda each: found[each.index] if isinstance(each, _Output) else each, result)
    for cache, arrays in zip(caches, states, strict=True):
        vars(cache).update(vars(_functional(cache, arrays)))
    return out


@contextmanager
def _called(module: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """Inside, a call of this one module runs `call` instead; its class and its other instances are untouched."""
    own = type(module)
    module.__class__ = type(own.__name__, (own,), {"__call__": lambda _, *args, **kwargs: call(*args, **kwargs)})
    try:
        yield
    finally:
        module.__class__ = own


@contextmanager
def evaluated_by_layer(whole: nn.Module) -> Iterator[None]:
    """Inside, the output of each layer is evaluated before the next one runs: no evaluation covers more than a layer.

    For calls outside gradients (`command_size.py` bounds other ones by their number of tokens).
    """

    def run(layer: nn.Module, call: Any, *args: Any, **kwargs: Any) -> Any:
        out = call(layer, *args, **kwargs)
        mx.eval([each for _, each in tree_flatten([out]) if isinstance(each, mx.array)])
        return out

    with ExitStack() as stack:
        for layer in {id(each): each for each in whole.layers}.values():
            stack.enter_context(_called(layer, partial(run, layer, type(layer).__call__)))
        yield


def _owner(whole: nn.Module) -> tuple[nn.Module, str]:
    """Return the body, the innermost module around the layers that the model calls, and the dotted path of their list.

    Raise LookupError if there is none.
    """
    first, modules = whole.layers[0], dict(whole.named_modules())
    held = [(path, name) for path, module in modules.items() for name, each in module.items() if isinstance(each, list)]
    path, name = next((p, n) for p, n in held if any(each is first for each in modules[p][n]))
    parts = path.split(".")
    for depth in range(len(parts), 0, -1):
        module = modules.get(".".join(parts[:depth]))
        with suppress(LookupError):
            if module is None or module is whole:
                continue
            _output(module, whole, mx.zeros((1, 1), dtype=mx.int32), None)
            return module, f"{path}.{name}"
    raise LookupError("no module around its layers is called")
