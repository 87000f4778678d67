"""The recurrence of gated delta networks while learning: the results of mlx-lm's loop over tokens, with less memory."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_policies import make_policy, make_samples

mx = pytest.importorskip("mlx.core")
ROUNDING = 2e-5  # float32, sums in another order; relative to the norm of each array


def arguments(seed: int, tokens: int, heads: tuple[int, int], channel_gates: bool, width: int = 8) -> list[Any]:
    """Arguments of `gated_delta_update` up to the state, two rows, as a layer makes them."""
    rng, (keys, values) = np.random.default_rng(seed), heads
    gate = (values, width) if channel_gates else (values,)
    k = rng.standard_normal((2, tokens, keys, width))
    shapes = [(2, tokens, values, width), (2, tokens, *gate), (2, tokens, values)]
    arrays = [
        rng.standard_normal((2, tokens, keys, width)) * width**-0.5,
        k / np.linalg.norm(k, axis=-1, keepdims=True),
        *(rng.standard_normal(shape) for shape in shapes),
        rng.standard_normal((values, 1) if channel_gates else (values,)),
        rng.standard_normal(gate) - 2,
        rng.standard_normal((2, values, width, width)),
    ]
    return [mx.array(array.astype(np.float32)) for array in arrays]


def results(update: Any, arrays: list[Any], mask: Any = None, **options: Any) -> list[Any]:
    """Outputs, last state and the gradients with respect to all arguments."""

    def run(*each: Any) -> list[Any]:
        y, state = update(*each, mask=mask, use_kernel=False, **options)
        return [y if mask is None else mx.where(mask[..., None, None], y, 0.0), state]

    found = run(*arrays)
    weights = [mx.cos(mx.arange(each.size, dtype=mx.float32)).reshape(each.shape) for each in found]
    return found + list(mx.vjp(run, arrays, weights)[1])


def difference(found: list[Any], expected: list[Any]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float(mx.linalg.norm(x - y) / (mx.linalg.norm(y) + 1e-6)) for x, y in pairs)


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 99),
    st.integers(1, 13),
    st.sampled_from([(1, 1), (2, 2), (1, 3), (2, 4)]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([{}, {"lower_bound": -5.0}, {"allow_neg_eigval": True}]),
)
def test_results_and_gradients_are_those_of_the_loop_over_tokens(
    seed: int, tokens: int, heads: tuple[int, int], channels: bool, masked: bool, stateless: bool, options: Any
) -> None:
    from mlx_lm.models.gated_delta import gated_delta_update

    from sdpo_mlx.backends.mlx import gated_delta

    arrays = arguments(seed, tokens, heads, channels)[: -1 if stateless else None]
    mask = mx.array(np.random.default_rng(seed).random((2, tokens)) < 0.7) if masked else None
    with pytest.MonkeyPatch.context() as patch:  # several chunks, the last one short
        patch.setattr(gated_delta, "CHUNK", 4)
        patch.setattr(gated_delta, "CHANNEL_CHUNK", 4)
        found = results(gated_delta.learning_update, arrays, mask, **options)
    assert difference(found, results(gated_delta_update, arrays, mask, **options)) < ROUNDING


def test_state_that_is_handed_on_carries_the_gradient() -> None:
    from sdpo_mlx.backends.mlx.gated_delta import learning_update

    def parts(q: Any, k: Any, v: Any, a: Any, b: Any, *rest: Any, **options: Any) -> tuple[Any, Any]:
        A_log, dt_bias, state = rest
        outputs = []
        for at in (slice(None, 5), slice(5, None)):
            y, state = learning_update(*(each[:, at] for each in (q, k, v, a, b)), A_log, dt_bias, state, **options)
            outputs.append(y)
        return mx.concatenate(outputs, axis=1), state

    arrays = arguments(0, 12, (2, 4), channel_gates=False)
    assert difference(results(parts, arrays), results(learning_update, arrays)) < ROUNDING


@pytest.mark.parametrize("channels", [False, True])
def test_repeated_tokens_and_extreme_gates_lose_no_digits(channels: bool) -> None:
    from sdpo_mlx.backends.mlx.gated_delta import chunked

    q, k, v, *_, state = arguments(1, 70, (2, 2), channels)
    k = mx.broadcast_to(k[:, :1], k.shape)  # the case in which a power series of the triangular matrix overflows
    strong = mx.array(np.random.default_rng(0).random((2, 70, 2)) < 0.1)
    log_g = mx.where(strong, -200.0, -1e-3)
    log_g = mx.broadcast_to(log_g[..., None], (2, 70, 2, 8)) if channels else log_g
    beta = mx.ones((2, 70, 2))
    y, last = chunked(q, k, v, log_g, beta, state)
    exact, outputs = np.array(state, np.float64), []
    arrays = [np.array(each, np.float64) for each in (q, k, v, log_g if channels else log_g[..., None])]
    for q_t, k_t, v_t, g_t in zip(*(each.swapaxes(0, 1) for each in arrays), strict=True):
        exact = exact * np.exp(g_t)[..., None, :]
        exact = exact + (v_t - np.einsum("bhvk,bhk->bhv", exact, k_t))[..., None] * k_t[..., None, :]
        outputs.append(np.einsum("bhvk,bhk->bhv", exact, q_t))
    np.testing.assert_allclose(np.array(y), np.stack(outputs, 1), atol=2e-5)
    np.testing.assert_allclose(np.array(last), exact, atol=2e-5)


@pytest.mark.parametrize("channels", [False, True])
def test_gradient_holds_a_fraction_of_the_memory_of_the_loop(channels: bool) -> None:
    from mlx_lm.models.gated_delta import gated_delta_update

    from sdpo_mlx.backends.mlx.gated_delta import learning_update

    arrays, peaks = arguments(0, 128, (1, 1), channels, width=128), []
    mx.eval(arrays)
    for update in (gated_delta_update, learning_update):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(results(update, arrays))
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] <= peaks[0] / 4


def test_mlx_own_recurrence_has_the_same_gradients() -> None:
    from sdpo_mlx.backends.mlx.gated_delta import fused_difference

    assert fused_difference(2, 4, 8, 8) < ROUNDING


def test_mlx_own_recurrence_keeps_the_gates_of_a_bfloat16_model() -> None:
    from sdpo_mlx.backends.mlx.gated_delta import chunked, fused

    q, k, v, *_, state = arguments(2, 60, (2, 2), channel_gates=False)
    log_g, beta = mx.full((2, 60, 2), -1e-3), mx.full((2, 60, 2), 0.5)  # exp(-0.001) rounds to 1 in bfloat16
    arrays = [*(each.astype(mx.bfloat16) for each in (q, k, v)), log_g, beta, state]
    found, expected = fused(*arrays), chunked(*arrays)
    assert found[0].dtype == expected[0].dtype == mx.bfloat16
    assert difference([found[1]], [expected[1]]) < ROUNDING


def test_no_fused_backward_is_expected_where_mlx_composes_it() -> None:
    from sdpo_mlx.backends.mlx.gated_delta import _composed_of_kernels, fused_backward

    if mx.default_device() == mx.Device(mx.gpu):
        pytest.skip("a GPU may have one")
    assert not fused_backward(16, 16, 128, 128)
    assert not _composed_of_kernels(2, 2, 8, 8)


def test_only_the_learning_step_replaces_the_recurrence_whatever_happens() -> None:
    from mlx_lm.models import gated_delta as theirs
    from mlx_lm.models import olmo_hybrid, qwen3_5

    from sdpo_mlx.backends.mlx.gated_delta import efficient_recurrence, learning_update

    policy = make_policy("qwen3_5")

    def interrupted() -> None:
        with policy.learning(), efficient_recurrence(policy.model.whole):
            assert qwen3_5.gated_delta_update is learning_update
            assert olmo_hybrid.gated_delta_update is theirs.gated_delta_update  # another model's
            raise KeyboardInterrupt

    original = theirs.gated_delta_update
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert qwen3_5.gated_delta_update is theirs.gated_delta_update is original


def test_two_learners_at_once_leave_nothing_replaced() -> None:
    from mlx_lm.models import qwen3_5
    from mlx_lm.models.gated_delta import gated_delta_update

    from sdpo_mlx.backends.mlx.gated_delta import efficient_recurrence

    model = make_policy("qwen3_5").model.whole
    first, second = efficient_recurrence(model), efficient_recurrence(model)
    for step in (first.__enter__, second.__enter__):
        step()
    for each in (first, second):
        each.__exit__(None, None, None)
    assert qwen3_5.gated_delta_update is gated_delta_update


def test_model_without_gated_deltas_is_left_alone() -> None:
    from sdpo_mlx.backends.mlx.gated_delta import efficient_recurrence

    policy = make_policy("qwen3")
    before = {name: vars(module).copy() for name, module in sys.modules.items() if name.startswith("mlx_lm.models")}
    with efficient_recurrence(policy.model.whole):
        after = {name: vars(sys.modules[name]) for name in before}
        assert all(before[name] == after[name] for name in before)


def test_step_of_a_hybrid_model_is_that_of_the_loop_over_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models.gated_delta import gated_delta_update

    from sdpo_mlx.backends.mlx import gated_delta
    from sdpo_mlx.config import ObjectiveConfig

    found = []
    for replaced in (True, False):
        if not replaced:
            monkeypatch.setattr(gated_delta, "learning_update", gated_delta_update)
        policy = make_policy("qwen3_5")
        update = policy.learn(make_samples(), ObjectiveConfig(), 1e-3)
        found.append((update.loss, update.grad_norm))
    # This random model multiplies rounding by about 100: chunks of 4 and of 64 tokens differ by 5e-5 too.
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)
