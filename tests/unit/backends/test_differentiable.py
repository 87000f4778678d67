"""Attention under a gradient: MLX's numbers bit for bit, without its fused kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pairwise import pairwise

from sdpo_mlx.backends.mlx.differentiable import composed_attention, differentiable_attention, has_fused_backward

import mlx.core as mx  # isort: skip

MASKS = ("none", "causal", "bool", "additive", "per head")
CASES = pairwise((1, 3, 8, 9, 20), (0, 5), (1, 2), MASKS, (False, True), ((8, 8), (12, 8)), ("float32", "bfloat16"))


def normal(key: int, *shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(key))


def mask_of(kind: str, queries: int, keys: int, heads: int) -> Any:
    if kind in ("none", "causal"):
        return None if kind == "none" else kind
    seen = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)[None]
    if kind == "bool":
        return seen[None, None]
    return mx.where(seen, 0.0, -1e9) if kind == "additive" else mx.broadcast_to(seen, (2, heads, queries, keys))


@pytest.mark.parametrize(("queries", "before", "repeats", "kind", "sinks", "widths", "dtype"), CASES)
def test_composed_attention_and_its_gradient_are_those_of_mlx_bit_for_bit(
    queries: int, before: int, repeats: int, kind: str, sinks: bool, widths: tuple[int, int], dtype: str
) -> None:
    if mx.default_device() == mx.Device(mx.gpu):
        pytest.skip("there MLX uses kernels")
    heads, keys = 2 * repeats, queries + before
    shapes = [(2, heads, queries, widths[0]), (2, 2, keys, widths[0]), (2, 2, keys, widths[1])]
    arrays = [normal(i, *shape).astype(getattr(mx, dtype)) for i, shape in enumerate(shapes)]
    if sinks:
        arrays.append(normal(3, heads).astype(getattr(mx, dtype)))
    mask = mask_of(kind, queries, keys, heads)
    if kind == "additive":
        mask = mask.astype(getattr(mx, dtype))

    def results(function: Any) -> list[np.ndarray]:
        def run(*each: mx.array) -> list[mx.array]:
            return [function(*each[:3], scale=0.3, mask=mask, sinks=each[3] if sinks else None)]

        cotangent = normal(4, 2, heads, queries, widths[1]).astype(getattr(mx, dtype))
        outputs, grads = mx.vjp(run, arrays, [cotangent])
        return [np.array(array.astype(mx.float32)) for array in (*outputs, *grads)]

    for ours, theirs in zip(results(composed_attention), results(mx.fast.scaled_dot_product_attention), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("queries", "widths", "sinks", "fused"),
    [
        (8, (128, 128), False, False),
        (9, (128, 128), False, True),
        (9, (128, 128), True, False),
        (9, (80, 80), False, False),
        (9, (192, 128), False, False),
        (40, (64, 64), False, True),
    ],
)
def test_fused_backward_needs_nine_queries_equal_widths_with_kernels_and_no_sinks(
    queries: int, widths: tuple[int, int], sinks: bool, fused: bool
) -> None:
    q, k, v = (mx.zeros((1, 1, n, w)) for n, w in ((queries, widths[0]), (50, widths[0]), (50, widths[1])))
    assert has_fused_backward(q, k, v, mx.zeros(1) if sinks else None) is fused


def test_blocks_that_end_in_any_order_restore_attention() -> None:
    original = mx.fast.scaled_dot_product_attention
    first, second = differentiable_attention(), differentiable_attention()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert mx.fast.scaled_dot_product_attention is not original
    second.__exit__(None, None, None)
    assert mx.fast.scaled_dot_product_attention is original
