"""A CPU as strict as Metal: what raises or ends the process there under a gradient raises here.

Whether a call is under a gradient is what MLX itself asks: whether it runs inside `mx.grad`, `mx.value_and_grad`,
`mx.vjp` or `mx.jvp`, through which every gradient of Python code goes; the backward functions of `mx.checkpoint` and
`mx.custom_function` run inside them too. Whatever catches the error, `Rules.broken` keeps it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import sdpo_mlx.backends.mlx.mlx_lm_api as api  # loads mlx-lm without torch
from sdpo_mlx.backends.mlx.differentiable import FUSED_WIDTHS

from mlx_lm.models import gated_delta, kimi_k3, rwkv7, ssm  # isort: skip

GRADIENTS = ("grad", "value_and_grad")
PRODUCTS = ("vjp", "jvp")


class MetalRuleError(AssertionError):
    """What Metal would not have done."""


class Rules:
    """The depth of gradients, work since the last evaluation, and broken rules with how often."""

    def __init__(self, *, wired: bool, bound: float | None) -> None:
        self.depth, self.work, self.wired, self.bound = 0, 0.0, wired, bound
        self.broken, self.attention = Counter[str](), Counter[str]()

    def check(self, forbidden: bool, rule: str) -> None:
        if forbidden:
            self.broken[rule] += 1
            raise MetalRuleError(rule)

    def inside(self, function: Any) -> Any:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.depth -= 1

        return run

    def attend(self, original: Any) -> Any:
        def call(q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, sinks: Any = None, **options: Any) -> Any:
            if self.depth:
                queries, widths = q.shape[-2], {q.shape[-1], k.shape[-1], v.shape[-1]}
                self.check(sinks is not None, "sinks")
                self.check(queries <= 8 and not isinstance(mask, mx.array), "short queries")
                self.check(not widths <= {*FUSED_WIDTHS} or len(widths) > 1, "head widths")
                self.attention["fused"] += 1
            return original(q, k, v, mask=mask, sinks=sinks, **options)

        return call

    def kernel(self, name: str, otherwise: Any) -> Any:
        """A Metal kernel without a backward pass, which computes `otherwise` outside gradients."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.check(self.depth > 0, f"kernel {name}")
            return otherwise(*args, **kwargs)

        return call

    def evaluate(self, original: Any) -> Any:
        def call(*trees: Any) -> Any:
            from mlx.utils import tree_flatten

            arrays = [each for _, each in tree_flatten(list(trees)) if isinstance(each, mx.array)]
            self.check(any(each.dtype == mx.float64 for each in arrays), "float64")
            work, self.work = self.work, 0.0
            self.check(self.bound is not None and work > self.bound, "evaluation")
            return original(*trees)

        return call

    def multiply(self, original: Any) -> Any:
        """A linear layer: two operations for each weight and token, six under a gradient."""

        def call(layer: Any, x: mx.array) -> mx.array:
            out = original(layer, x)
            self.work += 2.0 * x.size * out.shape[-1] * (3 if self.depth else 1)
            return out

        return call

    def wire(self, original: Any) -> Any:
        def call(size: int) -> Any:
            self.check(not self.wired, "wired limit")
            return original(size)

        return call


class OnMetal:
    """`mlx.core` for a module of mlx-lm that asks it for a GPU."""

    class metal:  # noqa: N801
        """`mx.metal`."""

        @staticmethod
        def is_available() -> bool:
            return True

    @staticmethod
    def default_device() -> Any:
        return mx.gpu

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)


@contextmanager
def metal_rules(*, wired: bool = False, bound: float | None = None) -> Iterator[Rules]:
    """Inside, this process keeps Metal's rules; `bound` are the operations of linear layers in one evaluation."""
    rules = Rules(wired=wired, bound=bound)
    with pytest.MonkeyPatch.context() as patch:
        for name in GRADIENTS:
            make = getattr(mx, name)
            patch.setattr(mx, name, lambda *args, make=make, **kwargs: rules.inside(make(*args, **kwargs)))
        for name in PRODUCTS:
            patch.setattr(mx, name, rules.inside(getattr(mx, name)))
        patch.setattr(mx.fast, "scaled_dot_product_attention", rules.attend(mx.fast.scaled_dot_product_attention))
        for name in ("eval", "async_eval"):
            patch.setattr(mx, name, rules.evaluate(getattr(mx, name)))
        for layer in (nn.Linear, nn.QuantizedLinear):
            patch.setattr(layer, "__call__", rules.multiply(layer.__call__))
        patch.setattr(mx, "set_wired_limit", rules.wire(mx.set_wired_limit))
        patch.setattr(api.mlx_lm_generate, "maybe_set_recommended_wired_limit", lambda: mx.set_wired_limit(1))
        for module in (gated_delta, ssm, rwkv7):
            patch.setattr(module, "mx", OnMetal())
        patch.setattr(gated_delta, "gated_delta_kernel", rules.kernel("gated delta", gated_delta.gated_delta_ops))
        patch.setattr(ssm, "ssm_update_kernel", rules.kernel("ssm", ssm.ssm_attn))
        patch.setattr(rwkv7, "wkv7_kernel", rules.kernel("wkv7", _wkv7))
        patch.setattr(kimi_k3, "_attn_res_mix", _mixed(rules, kimi_k3._attn_res_mix))
        yield rules
    assert not rules.broken


def _wkv7(*arrays: mx.array) -> Any:
    *inputs, state = arrays
    outputs = []
    for at in range(inputs[0].shape[1]):
        y, state = rwkv7._wkv7_step_ops(*(each[:, at] for each in inputs), state)
        outputs.append(y)
    return mx.stack(outputs, axis=1).astype(inputs[0].dtype), state


def _mixed(rules: Rules, original: Any) -> Any:
    def call(blocks: Any, partial_sum: Any, w_eff: Any, eps: float, use_kernel: bool = True) -> Any:
        if use_kernel and blocks.raw is not None:
            rules.check(rules.depth > 0, "kernel attnres_mix")
        return original(blocks, partial_sum, w_eff, eps, use_kernel)

    return call
