"""The fixture `metal_rules` raises for each rule, and counts the work of every evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_work import operations_of
from metal_rules import MetalRuleError, metal_rules
from mlx_architectures import NOT_HERE, REFUSED

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip

import sdpo_mlx.backends.mlx.mlx_lm_api  # noqa: F401  # loads mlx-lm without torch

from mlx_lm.models import gated_delta, kimi_k3, rwkv7, ssm  # isort: skip

ATTENTION = (2, 9, 64)  # heads, queries and keys, width


def attend(queries: int = 9, width: int = 64, **options: Any) -> Callable[[mx.array], mx.array]:
    """Attention as a function of its queries, all ones."""
    heads, keys, _ = ATTENTION
    held = mx.ones((1, heads, keys, width))

    def run(x: mx.array) -> mx.array:
        q = x * mx.ones((1, heads, queries, width))
        return mx.sum(mx.fast.scaled_dot_product_attention(q, held, held, scale=1.0, **options))

    return run


ALLOWED = {
    "nine queries": lambda: mx.grad(attend(9, mask="causal"))(mx.array(1.0)),
    "an array mask": lambda: mx.grad(attend(3, mask=mx.ones((3, 9), mx.bool_)))(mx.array(1.0)),
    "no gradient": lambda: attend(3, width=48, sinks=mx.zeros(2))(mx.array(1.0)),
    "a kernel outside": lambda: gated_delta.gated_delta_kernel(*delta()),
    "a float32": lambda: mx.eval(mx.array(1.0)),
}
FORBIDDEN = {
    "short queries": lambda: mx.grad(attend(8, mask="causal"))(mx.array(1.0)),
    "sinks": lambda: mx.value_and_grad(attend(sinks=mx.zeros(2)))(mx.array(1.0)),
    "head widths": lambda: mx.vjp(attend(width=48), [mx.array(1.0)], [mx.array(1.0)]),
    "kernel gated delta": lambda: mx.grad(lambda x: gated_delta.gated_delta_kernel(x, *delta()[1:])[0])(mx.array(1.0)),
    "kernel ssm": lambda: mx.grad(ssm.ssm_update_kernel)(mx.array(1.0)),
    "kernel wkv7": lambda: mx.jvp(rwkv7.wkv7_kernel, [mx.array(1.0)], [mx.array(1.0)]),
    "kernel attnres_mix": lambda: mx.grad(lambda x: kimi_k3._attn_res_mix(residuals(), x, x, 1e-6))(mx.array(1.0)),
    "float64": lambda: mx.eval(mx.array(1.0, mx.float64)),
    "wired limit": lambda: mx.set_wired_limit(1),
}


def delta() -> list[mx.array]:
    """One token of a gated delta network with keys of 32: q, k, v, gate, beta, state."""
    q = mx.ones((1, 1, 1, 32))
    return [q, q, q, mx.ones((1, 1, 1)), mx.ones((1, 1, 1)), mx.zeros((1, 1, 32, 32))]


def residuals() -> Any:
    blocks = kimi_k3.ResidualBlocks(1e-6)
    blocks.append(mx.ones((1, 1, 4)))
    return blocks


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_each_rule_raises_and_is_kept(rule: str) -> None:
    kept: list[Any] = []

    def broken() -> None:
        with metal_rules() as rules:
            kept.append(rules)
            FORBIDDEN[rule]()

    with pytest.raises(MetalRuleError, match=rule):
        broken()
    assert dict(kept[0].broken) == {rule: 1}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_metal_does_raises_nothing(case: str) -> None:
    with metal_rules():
        ALLOWED[case]()


def test_a_rule_that_is_broken_and_caught_still_fails() -> None:
    def caught() -> None:
        with metal_rules(), pytest.raises(MetalRuleError):
            FORBIDDEN["sinks"]()

    with pytest.raises(AssertionError):
        caught()


def test_wired_limit_may_be_set_if_wiring_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    monkeypatch.setattr(mx, "set_wired_limit", calls.append)
    with metal_rules(wired=True):
        mx.set_wired_limit(1)
    assert calls == [1]


EVALUATIONS: dict[str, Callable[[mx.array], object]] = {
    "eval": lambda x: mx.eval([x]),
    "async_eval": lambda x: mx.async_eval({"x": [x]}),
    "item": lambda x: x.item(),
    "tolist": lambda x: x.tolist(),
    "float": float,
    "int": int,
    "bool": bool,
    "np.array": lambda x: np.array(x, np.float32),
    "np.asarray": lambda x: np.asarray(x, np.float32),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_each_evaluation_is_held_to_the_bound_once(name: str) -> None:
    square = mx.ones((8, 8))
    evaluate = EVALUATIONS[name]
    with metal_rules(bound=1024) as rules:
        total = mx.sum(square @ square)
        evaluate(total)
        evaluate(total)  # nothing is left to compute
    assert rules.largest == 1024
    with pytest.raises(MetalRuleError, match="evaluation"), metal_rules(bound=1023):
        evaluate(mx.sum(square @ square))


X, W = mx.ones((6, 64)), mx.ones((64, 32))
EXPERTS, CHOSEN = mx.ones((4, 64, 32)), mx.array([0, 1, 3])
Q4, Q4_EXPERTS = mx.quantize(mx.ones((32, 64)), 64, 4), mx.quantize(mx.ones((4, 32, 64)), 64, 4)
PRODUCTS: dict[str, tuple[Callable[[mx.array], mx.array], int]] = {
    "matmul": (lambda x: x @ W, 6 * 64 * 32),
    "addmm": (lambda x: mx.addmm(mx.ones(32), x, W), 6 * 64 * 32),
    "quantized": (lambda x: mx.quantized_matmul(x, *Q4), 6 * 64 * 32),
    "gather": (lambda x: mx.gather_mm(x[None], EXPERTS, rhs_indices=CHOSEN), 3 * 6 * 64 * 32),
    "gather quantized": (lambda x: mx.gather_qmm(x[None], *Q4_EXPERTS, rhs_indices=CHOSEN), 3 * 6 * 64 * 32),
    "convolution": (lambda x: mx.conv1d(x[None], mx.ones((64, 3, 1)), padding=1, groups=64), 6 * 64 * 3),
    "tied head": (lambda x: nn.Embedding(50, 64).as_linear(x), 6 * 64 * 50),
    "attention": (
        lambda x: mx.fast.scaled_dot_product_attention(*[x[None, None]] * 3, scale=1.0),
        2 * 6 * 6 * 64,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_work_of_a_product_and_of_its_gradient_is_counted(name: str) -> None:
    run, products = PRODUCTS[name]
    assert operations_of([run(X)]) == 2 * products
    if "convolution" not in name:  # whose gradient is a convolution of another size
        found = operations_of([mx.grad(lambda x: mx.sum(mx.square(run(x))))(X)])
        # Forward, and the gradient of the input; attention has three inputs, and its weights.
        assert found == 2 * products * (3 if name == "attention" else 2)


def test_every_kernel_of_mlx_lm_is_known() -> None:
    """A new kernel has no rule of this fixture yet."""
    folder = Path(gated_delta.__file__).parent
    found = {path.stem for path in folder.glob("*.py") if "fast.metal_kernel(" in path.read_text(encoding="utf-8")}
    assert found == {"gated_delta", "ssm", "rwkv7", "kimi_k3", "bitlinear_layers", "deepseek_v41"}
    assert {"bitnet", "deepseek_v41"} <= {*NOT_HERE, *REFUSED}
