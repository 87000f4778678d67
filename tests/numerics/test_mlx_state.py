"""What a step may and may not change: non-finite numbers, nothing to learn, the optimizer, the teacher, the state."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from small_policies import bytes_of, found, make_policy, make_samples, stir

from sdpo_mlx import objective as oracle
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.core.errors import ConfigError

mx = pytest.importorskip("mlx.core")

HYBRID = ObjectiveConfig(kind="hybrid")


def newly_trained(**options: Any) -> Any:
    """A policy with moments in its optimizer and a teacher that lags behind."""
    policy = make_policy(**options)
    assert policy.learn(make_samples(1, "hybrid"), HYBRID, 1e-2).applied
    return policy


@cache
def trained_once(budget: int) -> tuple[Any, Any]:
    policy = newly_trained(micro_batch_tokens=budget)
    return policy, policy.state()


def trained(budget: int = 40) -> Any:
    """The same, from one policy that is set back to what it was."""
    policy, state = trained_once(budget)
    policy.load_state(state)
    return policy


def poisoned(policy: Any, part: str, value: float) -> None:
    state = {name: dict(arrays) for name, arrays in policy.state().items()}
    name = sorted(state[part])[3]
    state[part][name] = state[part][name].copy()
    state[part][name].flat[2] = value
    policy.load_state(state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["student", "teacher"])
def test_poison_in_weights_never_spreads(part: str, value: float) -> None:
    policy = trained()
    poisoned(policy, part, value)
    before = bytes_of(policy)
    update = policy.learn(make_samples(2, "hybrid"), HYBRID, 1e-2)
    assert (update.applied, update.reason) == (False, "non_finite")
    assert set(update.non_finite) >= {"a", "b"}
    assert bytes_of(policy) == before


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *product(("rollout_logps_T", "advantage"), (float("nan"), float("inf"), float("-inf"))),
        *product(("distil_weight", "policy_weight"), (float("nan"), float("inf"))),  # below 0 counts as none
    ],
)
def test_poison_in_a_sample_never_reaches_the_weights(place: str, value: float) -> None:
    policy, samples = trained(), make_samples(2, "hybrid")
    poison = np.array([0, value, *[0] * 5], dtype=np.float32) if place == "rollout_logps_T" else value
    samples[2] = replace(samples[2], **{place: poison})
    before = bytes_of(policy)
    update = policy.learn(samples, HYBRID, 1e-2)
    assert (update.applied, update.reason, update.non_finite) == (False, "non_finite", ("b",))
    assert bytes_of(policy) == before


def test_poison_in_the_gradient_alone_names_its_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx import gradient

    policy, samples, backward = trained(budget=1), make_samples(2, "hybrid"), gradient.backward

    def broken(model: Any, trunk: Any, student: Any, unit: Any, *rest: Any) -> Any:
        grads = backward(model, trunk, student, unit, *rest)
        name = sorted(grads)[0]
        return grads | ({name: grads[name] * float("nan")} if 2 in unit.members else {})

    monkeypatch.setattr(gradient, "backward", broken)
    before = bytes_of(policy)
    update = policy.learn(samples, HYBRID, 1e-2)
    assert (update.applied, update.reason, update.non_finite) == (False, "non_finite", ("b",))
    assert np.isfinite(update.loss)
    assert bytes_of(policy) == before


def test_nothing_counted_changes_nothing() -> None:
    policy = trained()
    before = bytes_of(policy)
    silent = [replace(s, distil_weight=0.0, policy_weight=0.0) for s in make_samples(2)]
    for samples in ([], silent):
        update = policy.learn(samples, HYBRID, 1e-2)
        assert (update.applied, update.reason, update.tokens, update.loss) == (False, "no_signal", 0, 0.0)
    assert bytes_of(policy) == before


def test_rate_of_zero_changes_nothing_and_says_so() -> None:
    policy = trained()
    before = bytes_of(policy)
    update = policy.learn(make_samples(2), ObjectiveConfig(), 0.0)
    assert not update.applied
    assert update.reason == "learning_rate"
    assert update.loss != 0
    assert update.non_finite == ()
    assert bytes_of(policy) == before


def test_interruption_between_micro_batches_changes_nothing() -> None:
    policy, calls = trained(budget=1), []

    def pressed() -> bool:
        calls.append(1)
        return len(calls) == 8

    before = bytes_of(policy)
    with pytest.raises(KeyboardInterrupt):
        policy.learn(make_samples(2, "hybrid"), HYBRID, 1e-2, interrupted=pressed)
    assert len(calls) == 8
    assert bytes_of(policy) == before


def test_ema_teacher_equals_its_closed_form_over_twenty_updates() -> None:
    policy = make_policy(seed=None, micro_batch_tokens=10_000)
    initial, students = policy.state()["teacher"], []
    assert all(np.array_equal(a, policy.state()["student"][n]) for n, a in initial.items())
    for step in range(20):
        assert policy.learn(make_samples(step, "hybrid"), HYBRID, 1e-2).applied
        policy.update_teacher(policy.teacher_cfg)
        students.append(policy.state()["student"])
    for name, array in policy.state()["teacher"].items():
        right = oracle.ema_closed_form(initial[name], [s[name] for s in students], 0.3)
        np.testing.assert_allclose(array, right, rtol=1e-5, atol=1e-6)
    assert any(not np.array_equal(students[-1][n], a) for n, a in policy.state()["teacher"].items())


@pytest.mark.parametrize(("kind", "follows"), [("live", True), ("frozen", False), ("trust_region", False)])
def test_other_teachers_copy_or_stay(kind: str, follows: bool) -> None:
    policy = make_policy(teacher=kind)
    before = policy.state()["teacher"]
    assert policy.learn(make_samples(2, "hybrid"), HYBRID, 1e-2).applied
    policy.update_teacher(policy.teacher_cfg)
    after = policy.state()
    wanted = after["student"] if follows else before
    assert all(np.array_equal(after["teacher"][n], a) for n, a in wanted.items())
    assert follows or any(not np.array_equal(after["student"][n], a) for n, a in before.items())


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_adamw_follows_torchs_formula(clip: float) -> None:
    policy = make_policy(weight_decay=0.1, clip_norm=clip)
    rate, first, second = 1e-2, {}, {}
    want = {n: a.astype(np.float64) for n, a in policy.state()["student"].items()}
    for step in (1, 2, 3):
        samples = make_samples(step, "hybrid")
        grads = {n: np.asarray(g, np.float64) for n, g in found(policy, samples, HYBRID).grads.items()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        update = policy.learn(samples, HYBRID, rate)
        assert update.grad_norm == pytest.approx(norm, rel=1e-4)
        for name, grad in grads.items():
            grad = grad * min(1.0, clip / (norm + 1e-6))
            first[name] = 0.9 * first.get(name, 0.0) + 0.1 * grad
            second[name] = 0.999 * second.get(name, 0.0) + 0.001 * grad**2
            root = np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8
            want[name] = want[name] * (1 - rate * 0.1) - rate * first[name] / (1 - 0.9**step) / root
    for name, array in policy.state()["student"].items():
        # The quotient has no digits where the gradient is rounding noise.
        solid = np.sqrt(second[name] / (1 - 0.999**3)) > 1e-6 * min(1.0, clip)
        np.testing.assert_allclose(array[solid], want[name][solid], atol=2e-5)
        assert solid.mean() > 0.5


@pytest.mark.parametrize("options", [{}, {"kind": "dora"}, {"kind": "full"}, {"dropout": 0.3}])
def test_training_on_after_a_round_trip_is_bit_equal(options: dict[str, Any]) -> None:
    policy, other = newly_trained(**options), make_policy(seed=9, **options)
    policy.update_teacher(policy.teacher_cfg)
    other.load_state({part: {n: a.copy() for n, a in arrays.items()} for part, arrays in policy.state().items()})
    assert bytes_of(other) == bytes_of(policy)
    for one in (policy, other):
        for step in (5, 6):
            assert one.learn(make_samples(step, "hybrid"), HYBRID, 1e-2).applied
            one.update_teacher(one.teacher_cfg)
    assert bytes_of(other) == bytes_of(policy)


@pytest.mark.parametrize("part", ["student", "teacher", "optimizer"])
@pytest.mark.parametrize("fault", ["shape", "missing", "extra"])
def test_state_of_another_model_is_refused_whole(part: str, fault: str) -> None:
    policy = trained()
    before = bytes_of(policy)
    other = make_policy(seed=3)
    state = {name: dict(arrays) for name, arrays in other.state().items()}
    name = next(n for n in state[part] if "lora_a" in n)
    if fault == "shape":
        state[part][name] = state[part][name][:-1]
    elif fault == "missing":
        del state[part][name]
    else:
        state[part]["no.such.layer"] = np.zeros(3, np.float32)
    with pytest.raises(ConfigError, match=part) as error:
        policy.load_state(state)
    assert "\n" not in str(error.value)
    assert bytes_of(policy) == before


def test_state_is_a_copy_that_later_steps_leave_alone() -> None:
    policy = trained()
    state = policy.state()
    kept = {n: a.copy() for n, a in state["student"].items()}
    policy.learn(make_samples(4), ObjectiveConfig(), 1e-2)
    stir(policy, 8)
    assert all(np.array_equal(kept[n], a) for n, a in state["student"].items())


def test_quantized_base_refuses_full_training() -> None:
    with pytest.raises(ConfigError, match="quantized"):
        make_policy("qwen3-4bit", kind="full")


def test_keys_that_match_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="no layer matches"):
        make_policy(keys=["self_attn.nothing"])
