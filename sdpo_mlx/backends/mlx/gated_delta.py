"""Gated delta networks (Qwen3.5, Qwen3-Next, Kimi-Linear, OLMo-hybrid) while learning.

mlx-lm's kernel has no gradient; its fallback is a Python loop over tokens whose graph holds the state after every
token. `efficient_recurrence` replaces both while a step learns, for student and teacher alike: by
`mx.fast.gated_delta_update` if MLX has a fused backward pass for the call, otherwise by `chunked`, which holds one
state per chunk of tokens and replaces the loop inside a chunk by matrix products (Yang et al., "Gated Delta Networks",
2024, section 3.3).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sdpo_mlx.backends.mlx.mlx_lm_api import gated_delta_update

CHUNK = 64  # tokens; with a gate per channel fewer, because a chunk then holds tokens x tokens x channels numbers
CHANNEL_CHUNK = 16
NAME = "gated_delta_update"
FUSED_TOLERANCE = 2e-3  # relative; a wrong kernel differs in the first digit, float32 sums in another order by 1e-5
ARGUMENTS = (*"qkvab", "A_log", "dt_bias", "state", "mask", "use_kernel", "lower_bound", "allow_neg_eigval")
State = tuple[mx.array, mx.array]  # outputs, last state


@contextmanager
def efficient_recurrence(model: nn.Module) -> Iterator[None]:
    """Inside, the model's gated delta layers use `learning_update`. Models without such layers are not touched.

    Only the name that the model's modules imported is replaced, and it is restored at the end. If two threads are
    inside at once, the first to leave restores mlx-lm's function for both: slower, and the same result.
    """
    names = {type(module).__module__ for module in model.modules()}
    replaced = [sys.modules[name] for name in sorted(names) if _uses_mlx_lm(sys.modules.get(name))]
    try:
        for module in replaced:
            setattr(module, NAME, learning_update)
        yield
    finally:
        for module in replaced:
            setattr(module, NAME, gated_delta_update)


def _uses_mlx_lm(module: Any) -> bool:
    return getattr(module, NAME, None) is gated_delta_update


def learning_update(*arguments: Any, **options: Any) -> State:
    """See `mlx_lm.models.gated_delta.gated_delta_update`, with the same arguments and result.

    Calls with arguments that a later mlx-lm adds go to mlx-lm.
    """
    call = signature(gated_delta_update).bind(*arguments, **options).arguments
    if call.keys() - ARGUMENTS:
        return cast(State, gated_delta_update(*arguments, **options))
    q, k, v, a, b, A_log, dt_bias = (call[name] for name in ARGUMENTS[:7])
    state, mask, bound = call.get("state"), call.get("mask"), call.get("lower_bound")
    beta = mx.sigmoid(b) * (2.0 if call.get("allow_neg_eigval") else 1.0)
    rate = mx.exp(A_log.astype(mx.float32))
    if bound is None:
        log_g = -rate * nn.softplus(a + dt_bias)
    else:
        log_g = bound * mx.sigmoid(rate * (a.astype(mx.float32) + dt_bias))
    if state is None:
        state = mx.zeros((q.shape[0], *v.shape[-2:], q.shape[-1]), dtype=mx.float32)
    if mask is None and log_g.ndim == 3 and fused_backward(q.shape[-2], v.shape[-2], q.shape[-1], v.shape[-1]):
        return fused(q, k, v, log_g, beta, state)
    return chunked(q, k, v, log_g, beta, state, mask)


def fused(q: mx.array, k: mx.array, v: mx.array, log_g: mx.array, beta: mx.array, state: mx.array) -> State:
    """MLX's own recurrence.

    It computes in the type of `q`, and bfloat16 has no number between 0.996 and 1, where gates lie: so in float32.
    """
    q32, k32, v32, g, beta = (array.astype(mx.float32) for array in (q, k, v, mx.exp(log_g), beta))
    y, last = mx.fast.gated_delta_update(q32, k32, v32, g, beta, state.astype(mx.float32))
    return y.astype(q.dtype), last.astype(state.dtype)


@cache
def fused_backward(key_heads: int, value_heads: int, key_width: int, value_width: int) -> bool:
    """Return whether MLX has a fused forward and backward pass for these heads, and both agree with `chunked`.

    MLX composes what it has no kernel for from one set of operations per token, which the graph of two tokens shows.
    """
    if not hasattr(mx.fast, NAME) or mx.default_device() != mx.Device(mx.gpu):
        return False
    try:
        return _composed_of_kernels(key_heads, value_heads, key_width, value_width) and (
            fused_difference(key_heads, value_heads, key_width, value_width) <= FUSED_TOLERANCE
        )
    except (RuntimeError, ValueError, TypeError):  # a kernel that this device or this version lacks
        return False


def _composed_of_kernels(*heads: int) -> bool:
    gradients, graph = _gradients(fused, _example(2, *heads)), io.StringIO()
    mx.export_to_dot(graph, *gradients)
    return "GatedDeltaUpdateVJP" in graph.getvalue()


def fused_difference(*heads: int) -> float:
    """Return the largest relative difference of the gradients of `fused` and `chunked` on 21 random tokens."""
    arrays = _example(21, *heads)
    pairs = zip(_gradients(fused, arrays), _gradients(chunked, arrays), strict=True)
    worst = mx.max(mx.stack([mx.linalg.norm(x - y) / (mx.linalg.norm(y) + 1e-6) for x, y in pairs]))
    return float(np.nan_to_num(np.array(worst), nan=np.inf))


def _example(tokens: int, key_heads: int, value_heads: int, key_width: int, value_width: int) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(0), 6)
    q, k = (mx.random.normal((2, tokens, key_heads, key_width), key=key) * key_width**-0.5 for key in keys[:2])
    v = mx.random.normal((2, tokens, value_heads, value_width), key=keys[2])
    log_g = mx.random.uniform(-0.5, 0.0, (2, tokens, value_heads), key=keys[3])
    beta = mx.random.uniform(0.0, 1.0, (2, tokens, value_heads), key=keys[4])
    return [q, k, v, log_g, beta, mx.random.normal((2, value_heads, value_width, key_width), key=keys[5])]


def _gradients(update: Any, arrays: list[mx.array]) -> list[mx.array]:
    y, state = update(*arrays)
    weights = [mx.cos(mx.arange(array.size, dtype=mx.float32)).reshape(array.shape) for array in (y, state)]
    _, found = mx.vjp(lambda *each: list(update(*each)), arrays, weights)
    return list(found)


def chunked(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_g: mx.array,
    beta: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
) -> State:
    """Return outputs (B, T, Hv, Dv) and the last state (B, Hv, Dv, Dk) of the recurrence.

    `q`, `k` (B, T, Hk, Dk), `v` (B, T, Hv, Dv), `log_g` (B, T, Hv) or (B, T, Hv, Dk), `beta` (B, T, Hv), `mask` (B, T).
    Each chunk is computed again in the backward pass: one chunk's arrays are held, and one state for each.
    """
    inputs = [array.astype(mx.float32) for array in (q, k, v, log_g, beta)]
    if mask is not None:  # a gate of 1 and an update of 0 leave the state as it is
        inputs[3] = mx.where(mask.reshape(*mask.shape, *[1] * (log_g.ndim - 2)), inputs[3], 0.0)
        inputs[4] = mx.where(mask[..., None], inputs[4], 0.0)
    found: Any = _recurrence(*inputs, state.astype(mx.float32))
    y, last = found[0].astype(q.dtype), found[1]
    if mask is not None:
        y = mx.where(mask[..., None, None], y, mx.array(0.0, y.dtype))  # as mlx-lm's kernel
    return y, last.astype(state.dtype)


def _parts(arrays: Sequence[mx.array]) -> Iterator[list[mx.array]]:
    """Each chunk's part of arrays (B, T, ...); the fourth is the gate."""
    size = CHUNK if arrays[3].ndim == 3 else CHANNEL_CHUNK
    for start in range(0, arrays[3].shape[1], size):
        yield [array[:, start : start + size] for array in arrays]


def _all_chunks(*arrays: mx.array) -> tuple[mx.array, ...]:
    """The outputs, the last state, and for the backward pass the state before each chunk."""
    *inputs, state = arrays
    outputs, states = list[mx.array](), list[mx.array]()
    for q, k, v, log_g, beta in _parts(inputs):
        states.append(state)
        y, state = _chunk(q, k, v, log_g, beta, state)
        outputs.append(y)
    return mx.concatenate(outputs, axis=1), state, *states


_recurrence = mx.custom_function(_all_chunks)


@_recurrence.vjp
def _recurrence_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
    """Back through the chunks, each computed again from the state before it.

    A chunk waits for its cotangents, and the one before it for all of its gradients: `mx.checkpoint` orders neither,
    and MLX then holds the arrays of many chunks at once.
    """
    *inputs, _ = primals
    last, found = cotangents[1], list[list[mx.array]]()
    parts = [*_parts([*inputs, cotangents[0]])]
    for (*part, y), state in zip(reversed(parts), reversed(outputs[2:]), strict=True):
        late = mx.depends([*part, state], [y, last])
        _, grads = mx.vjp(lambda *each: list(_chunk(*each)), late, [y, last])
        *grads, last = mx.depends(grads, grads)
        found.append(grads)
    return *(mx.concatenate(list(each[::-1]), axis=1) for each in zip(*found, strict=True)), last


def _chunk(q: mx.array, k: mx.array, v: mx.array, log_g: mx.array, beta: mx.array, state: mx.array) -> State:
    """`chunked` for one chunk: all of its updates solve one triangular system."""
    repeats, size = v.shape[2] // q.shape[2], q.shape[1]
    q, k, v, log_g = (array.swapaxes(1, 2) for array in (q, k, v, log_g))  # (B, H, T, ...)
    beta = beta.swapaxes(1, 2)[..., None]
    if repeats > 1:
        q, k = mx.repeat(q, repeats, 1), mx.repeat(k, repeats, 1)
    lower = mx.tri(size, size, -1, dtype=mx.bool_)
    transposed = k.swapaxes(-1, -2)
    if log_g.ndim == 3:
        since = mx.exp(mx.cumsum(log_g, -1))[..., None]  # from the chunk's begin to each token
        between = _decay(log_g, lower)  # from token j (last axis) to token i
        keys, reads = (k @ transposed) * between, (q @ transposed) * between
        until = between[..., -1, :, None]
    else:
        since = mx.exp(mx.cumsum(log_g, -2))
        between = _decay(log_g.swapaxes(-1, -2), lower)  # (B, H, Dk, T, T)
        keys, reads = (
            mx.sum(between * each.swapaxes(-1, -2)[..., None] * transposed[..., None, :], axis=-3) for each in (k, q)
        )
        until = between[..., -1, :].swapaxes(-1, -2)
    before = state.swapaxes(-1, -2)  # (B, H, Dk, Dv)
    delta = _solve(mx.where(lower, beta * keys, 0.0), beta * (v - (k * since) @ before))
    y = (q * since) @ before + reads @ delta
    after = state * since[..., -1:, :] + delta.swapaxes(-1, -2) @ (k * until)
    return y.swapaxes(1, 2), after


def _decay(log_g: mx.array, lower: mx.array) -> mx.array:
    """Products of the gates after token j up to token i (..., T, T), 0 for j > i.

    Sums of each stretch, not differences of sums from the beginning: these lose the digits of a weak gate that
    follows a strong one.
    """
    stretches = mx.cumsum(mx.where(lower, log_g[..., None], 0.0), -2)
    return mx.exp(mx.where(lower | mx.eye(lower.shape[0], dtype=mx.bool_), stretches, -mx.inf))


def _solve(lower: mx.array, right: mx.array) -> mx.array:
    """Solve (1 + lower) x = right for a strictly lower triangular matrix (..., T, T)."""
    found: Any = _solve_with_inverse(lower, right)
    return cast(mx.array, found[0])


def _inverted(lower: mx.array, right: mx.array) -> tuple[mx.array, mx.array]:
    """The solution, and the inverse for the backward pass.

    Blocks of the diagonal are inverted first and joined two by two, as stable as substitution. A power series loses
    all digits if a token is repeated: its terms grow like binomial coefficients.
    """
    size = lower.shape[-1]
    rows = mx.arange(size)
    inverse, width = mx.eye(size), 1
    while width < size:
        block = rows // width
        joins = (block[:, None] == block[None] + 1) & (block[:, None] % 2 == 1)
        corner = mx.where(joins, lower, 0.0)
        inverse = inverse - (corner if width == 1 else inverse @ corner @ inverse)
        width *= 2
    return inverse @ right, inverse


_solve_with_inverse = mx.custom_function(_inverted)


@_solve_with_inverse.vjp
def _solve_vjp(_: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
    solved, inverse = outputs
    right = inverse.swapaxes(-1, -2) @ cotangents[0]
    return -(right @ solved.swapaxes(-1, -2)), right
