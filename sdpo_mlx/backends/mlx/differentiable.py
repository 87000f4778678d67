"""Attention and recurrences that have a backward pass on Metal, used where a gradient is computed.

MLX 0.32.4 on a GPU selects its vector kernel for at most 8 queries (queries times query heads per key head at most
32) also under a gradient, and that kernel raises: it produces no logsumexp, which the fused backward pass reads.
Attention sinks have no fused backward pass, and heads of other widths no backward kernel. Such calls are composed of
the operations that MLX itself falls back to, in the same order, so that on a CPU every number keeps its bits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sdpo_mlx.backends.mlx.mlx_lm_api import ssm_attn, ssm_update

ATTENTION = "scaled_dot_product_attention"
VECTOR_QUERIES = 8  # at most so many queries go to the vector kernel
VECTOR_ROWS = 32  # and at most so many queries times query heads per key head
FUSED_WIDTHS = (64, 96, 128, 192, 256)  # of a head, with kernels in MLX 0.32.4


def has_fused_backward(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array | None = None) -> bool:
    """Return whether a gradient may go through MLX's fused attention: the one rule of this module.

    Arrays (B, H, T, D). Stricter than the vector kernel's condition, which also asks for the number of heads.
    """
    widths = {q.shape[-1], k.shape[-1], v.shape[-1]}
    return sinks is None and q.shape[-2] > VECTOR_QUERIES and len(widths) == 1 and widths <= {*FUSED_WIDTHS}


def composed_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: str | mx.array | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    """See `mx.fast.scaled_dot_product_attention`: the same by operations that all have a gradient."""
    heads, groups = q.shape[1], k.shape[1]
    repeats = heads // groups
    q = mx.array(scale, q.dtype) * q
    if repeats > 1:
        q = mx.unflatten(q, 1, (groups, repeats))
        k, v = mx.expand_dims(k, 2), mx.expand_dims(v, 2)
    scores = q @ mx.swapaxes(k, -1, -2)
    if mask is not None:
        scores = _masked(scores, mask, groups, repeats)
    if sinks is not None:
        sinks = mx.expand_dims(sinks, (0, 2, 3))
        if repeats > 1:
            sinks = mx.unflatten(sinks, 1, (groups, repeats))
        scores = mx.concatenate([mx.broadcast_to(sinks, (*scores.shape[:-1], 1)), scores], axis=-1)
    weights = mx.softmax(scores, axis=-1, precise=True)
    out = (weights if sinks is None else weights[..., 1:]) @ v
    return mx.flatten(out, 1, 2) if repeats > 1 else out


def _masked(scores: mx.array, mask: str | mx.array, groups: int, repeats: int) -> mx.array:
    queries, keys = scores.shape[-2:]
    if isinstance(mask, str):
        offset = max(0, keys - queries)
        mask = mx.arange(offset, offset + queries)[:, None] >= mx.arange(keys)[None]
    if repeats > 1 and mask.ndim >= 3:
        mask = mx.expand_dims(mask, -3) if mask.shape[-3] == 1 else mx.unflatten(mask, -3, (groups, repeats))
    if mask.dtype == mx.bool_:
        return mx.where(mask, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))
    return scores + mask


def _attention(
    fused: Any, q: mx.array, k: mx.array, v: mx.array, *, sinks: mx.array | None = None, **options: Any
) -> mx.array:
    """MLX's attention `fused` where it has a backward pass, otherwise the composed one."""
    if has_fused_backward(q, k, v, sinks):
        found: mx.array = fused(q, k, v, **options)
        return found
    own = {name: options[name] for name in ("scale", "mask") if name in options}
    return composed_attention(q, k, v, sinks=sinks, **own)


class _Replacement:
    """MLX's attention replaced once however often it is entered, and restored when the last one leaves."""

    def __init__(self) -> None:
        self.depth, self.fused = 0, None

    def enter(self) -> None:
        self.depth += 1
        if self.depth == 1:
            self.fused = getattr(mx.fast, ATTENTION)
            setattr(mx.fast, ATTENTION, partial(_attention, self.fused))

    def leave(self) -> None:
        self.depth -= 1
        if not self.depth:
            setattr(mx.fast, ATTENTION, self.fused)


_replacement = _Replacement()  # one for the process, as MLX's function is


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Inside, `mx.fast.scaled_dot_product_attention` has a gradient for every call; all models of mlx-lm use it."""
    _replacement.enter()
    try:
        yield
    finally:
        _replacement.leave()


@contextmanager
def differentiable_recurrence(model: nn.Module) -> Iterator[None]:
    """Inside, the model's Mamba 2 and RWKV 7 layers do not use Metal kernels, which have no backward pass."""
    modules = [sys.modules[name] for name in sorted({type(each).__module__ for each in model.modules()})]
    replaced: list[tuple[Any, str, Any]] = []
    for module in modules:
        if getattr(module, "ssm_update", None) is ssm_update:
            replaced.append((module, "ssm_update", ssm_attn))  # which it calls itself for more than one token
        if hasattr(module, "_wkv7_step_ops"):
            replaced.append((module, "wkv7_kernel", partial(_wkv7_loop, module._wkv7_step_ops)))
    before = [(module, name, vars(module)[name]) for module, name, _ in replaced]
    try:
        for module, name, function in replaced:
            setattr(module, name, function)
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def _wkv7_loop(step: Any, *arrays: mx.array) -> tuple[mx.array, mx.array]:
    """RWKV 7's recurrence token by token, as mlx-lm runs it without Metal; arrays (B, T, H, D), then the state."""
    *inputs, state = arrays
    outputs = []
    for at in range(inputs[0].shape[1]):
        y, state = step(*(each[:, at] for each in inputs), state)
        outputs.append(y)
    return mx.stack(outputs, axis=1).astype(inputs[0].dtype), state
