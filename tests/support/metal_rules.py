"""A CPU as strict as Metal: what raises or ends the process there under a gradient raises here.

Whether a call is under a gradient is what MLX itself asks: whether it runs inside `mx.grad`, `mx.value_and_grad`,
`mx.vjp` or `mx.jvp`, through which every gradient of Python code goes; the backward functions of `mx.checkpoint` and
`mx.custom_function` run inside them too. Whatever catches the error, `Rules.broken` keeps it.

Evaluations are those of `mx.eval` and `mx.async_eval`, and the implicit ones of `item`, `tolist`, `bool`, `float`,
`int`, `np.array` and `np.asarray`; `memoryview` cannot be replaced. One inside a gradient is not read
(`evaluation_work.py`): what it computes of that gradient's graph counts in the evaluation after the gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from evaluation_work import Recomputed, operations_of, readable
from mlx.utils import tree_flatten

import sdpo_mlx.backends.mlx.mlx_lm_api as api  # loads mlx-lm without torch
from sdpo_mlx.backends.mlx.differentiable import FUSED_WIDTHS

from mlx_lm.models import gated_delta, kimi_k3, rwkv7, ssm  # isort: skip

GRADIENTS = ("grad", "value_and_grad")
PRODUCTS = ("vjp", "jvp")
IMPLICIT = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__")  # evaluations by methods of an array


class MetalRuleError(AssertionError):
    """What Metal would not have done."""


class Rules:
    """The depth of gradients, the operations of the largest evaluation, calls of kernels, and broken rules."""

    def __init__(self, *, wired: bool, bound: float | None) -> None:
        self.depth, self.largest, self.wired, self.bound = 0, 0.0, wired, bound
        self.recomputed = Recomputed()
        self.broken, self.kernels = Counter[str](), Counter[str]()

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
                self.kernels["attention"] += 1
            return original(q, k, v, mask=mask, sinks=sinks, **options)

        return call

    def kernel(self, name: str, otherwise: Any) -> Any:
        """A Metal kernel without a backward pass, which computes `otherwise` outside gradients."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.check(self.depth > 0, f"kernel {name}")
            self.kernels[name] += 1
            return otherwise(*args, **kwargs)

        return call

    def evaluate(self, original: Any) -> Any:
        """A function that evaluates the arrays among its arguments."""

        @wraps(original)
        def call(*trees: Any, **options: Any) -> Any:
            arrays = [each for _, each in tree_flatten(list(trees)) if isinstance(each, mx.array)]
            self.check(any(each.dtype == mx.float64 for each in arrays), "float64")
            if arrays and self.bound is not None and not self.depth:
                work = operations_of(arrays) * self.recomputed.share()
                self.largest = max(self.largest, work)
                self.check(work > self.bound, "evaluation")
            return original(*trees, **options)

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
    """Inside, this process keeps Metal's rules; `bound` are the operations of one evaluation."""
    rules = Rules(wired=wired, bound=bound)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if bound is not None:
            rules.recomputed = stack.enter_context(readable())
        for name in GRADIENTS:
            make = getattr(mx, name)
            patch.setattr(mx, name, lambda *args, make=make, **kwargs: rules.inside(make(*args, **kwargs)))
        for name in PRODUCTS:
            patch.setattr(mx, name, rules.inside(getattr(mx, name)))
        patch.setattr(mx.fast, "scaled_dot_product_attention", rules.attend(mx.fast.scaled_dot_product_attention))
        evaluations = [(mx, "eval"), (mx, "async_eval"), (np, "array"), (np, "asarray")]
        for owner, name in (*evaluations, *((mx.array, method) for method in IMPLICIT)):
            patch.setattr(owner, name, rules.evaluate(getattr(owner, name)))
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
