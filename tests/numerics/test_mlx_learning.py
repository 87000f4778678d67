"""What a step on MLX must not depend on: micro-batches, padding, shared prompts, chunks; and its random parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from backend_pairs import check_step
from small_policies import assert_same_gradient, found, make_policy, make_samples, rounding, stir

from sdpo_mlx.config import ObjectiveConfig

pytest.importorskip("mlx.core")


def test_head_in_chunks_gives_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx import model

    policy, samples = make_policy("llama", kind="full"), make_samples(7, "hybrid")
    objective = ObjectiveConfig(kind="hybrid", support="sequence", alpha=1.0)
    at_once = found(policy, samples, objective)
    monkeypatch.setattr(model.Model, "chunk", property(lambda self: 3))
    in_chunks = found(policy, samples, objective)
    assert in_chunks.loss == pytest.approx(at_once.loss, rel=1e-6)
    assert_same_gradient(in_chunks.grads, at_once.grads, 1e-5)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_gradient_ignores_micro_batch_and_order(architecture: str) -> None:
    policy, samples = make_policy(architecture), make_samples(11, "hybrid")
    objective = ObjectiveConfig(kind="hybrid", support="sequence", alpha=1.0, aggregation="sequence_mean_token_mean")
    reference = found(policy, samples, objective)
    for budget, order in [(1, [0, 1, 2, 3, 4]), (10_000, [0, 1, 2, 3, 4]), (40, [4, 2, 0, 3, 1]), (1, [3, 1, 4, 0, 2])]:
        policy.budget = budget
        again = found(policy, [samples[i] for i in order], objective)
        assert again.loss == pytest.approx(reference.loss, rel=1e-5)
        assert_same_gradient(again.grads, reference.grads, 1e-5)
        for place, i in enumerate(order):
            np.testing.assert_allclose(again.statistics[place].log_p_R, reference.statistics[i].log_p_R, atol=2e-5)


def test_gradient_ignores_padding_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends import learner

    policy, samples, objective = make_policy("gemma3"), make_samples(11), ObjectiveConfig(support="full")
    policy.budget = 10_000
    reference, pack, padded = found(policy, samples, objective), learner.pack, []

    def filled(*arguments: Any, **options: Any) -> Any:
        units = pack(*arguments, **options)
        for unit in units:
            rows = [node for node in unit.nodes if node.rows]
            flat = np.concatenate([node.ids_NT.reshape(-1) for node in rows])
            owners = np.repeat(range(len(rows)), [node.ids_NT.size for node in rows])
            starts = np.cumsum([0, *(node.ids_NT.size for node in rows)])
            for place, node in enumerate(rows):
                ends = np.zeros(len(node.ids_NT), int)
                taken = unit.take_R[owners[unit.take_R] == place] - starts[place]
                read, columns = np.divmod(taken, node.ids_NT.shape[1])
                np.maximum.at(ends, read, columns + 1)
                free = np.arange(node.ids_NT.shape[1]) >= ends[:, None]
                padded.append(int(free.sum()))
                node.ids_NT[free] = 59
            assert flat.size == starts[-1]
        return units

    monkeypatch.setattr(learner, "pack", filled)
    again = found(policy, samples, objective)
    assert sum(padded) > 0
    assert again.loss == reference.loss
    assert_same_gradient(again.grads, reference.grads, 1e-6)


def test_weights_of_zero_change_nothing_but_their_place() -> None:
    policy, samples, objective = make_policy(), make_samples(13, "hybrid"), ObjectiveConfig(kind="hybrid")
    silent = replace(samples[1], distil_weight=0.0, policy_weight=0.0)
    with_silent = [samples[0], silent, *samples[2:]]
    ours, without = found(policy, with_silent, objective), found(policy, [samples[0], *samples[2:]], objective)
    assert ours.loss == without.loss
    check_step(policy, None, with_silent, objective)
    update = policy.learn(with_silent, objective, 1e-3)
    assert [len(d) for d in update.divergence_T] == [5, 0, 7, 0, 4]
    assert update.tokens == 5 + 7 + 9 + 4


def test_divergence_tells_teacher_minus_student_at_the_sampled_tokens() -> None:
    policy, samples = make_policy(), make_samples(17)
    own = {name: [s.logps_T for s in policy.score(name, *_asked(samples, name))] for name in ("student", "teacher")}
    update = policy.learn(samples, ObjectiveConfig(), 1e-3)
    for i, sample in enumerate(samples):
        gap = own["teacher"][i] - own["student"][i] if sample.distil_weight > 0 else np.zeros(0)
        np.testing.assert_allclose(update.divergence_T[i], gap, atol=1e-4)


def _asked(samples: list[Any], role: str) -> tuple[list[Any], list[Any]]:
    return [getattr(s, f"{role}_ids") for s in samples], [getattr(s, f"{role}_span") for s in samples]


def test_dropout_masks_agree_forwards_and_backwards() -> None:
    policy = make_policy("llama", dropout=0.4, micro_batch_tokens=10_000)
    samples, objective = make_samples(19), ObjectiveConfig(support="full", importance_clip=None)
    base, rng = found(policy, samples, objective), np.random.default_rng(0)
    state, step = policy.state(), 3e-3
    direction = {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in state["student"].items()}
    losses = []
    for sign in (1, -1):
        policy.load_student({n: a + np.float32(sign * step) * direction[n] for n, a in state["student"].items()})
        losses.append(found(policy, samples, objective).loss)
    along = sum(float((np.asarray(base.grads[n], np.float64) * d).sum()) for n, d in direction.items())
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(along, rel=0.02)


def test_dropout_draws_new_masks_each_step_and_spares_the_teacher() -> None:
    policy, samples, objective = make_policy(dropout=0.5), make_samples(19), ObjectiveConfig(support="full")
    student, teacher = policy.student, [s.logps_T for s in policy.score("teacher", *_asked(samples, "teacher"))]
    first = found(policy, samples, objective)
    assert found(policy, samples, objective).loss == first.loss
    for figures, logps, sample in zip(first.statistics, teacher, samples, strict=True):
        if sample.distil_weight > 0:
            np.testing.assert_allclose(figures.log_q_R, logps, atol=1e-4)
    assert policy.learn(samples, objective, 1e-3).applied
    policy.student = student
    policy.load_student(policy.state()["student"])
    assert found(policy, samples, objective).loss != first.loss


def test_trust_region_mixes_logits_of_start_and_student() -> None:
    policy, samples = make_policy(teacher="trust_region"), make_samples(23)
    objective = ObjectiveConfig(support="full", alpha=1.0)
    before = found(policy, samples, objective).statistics[0].log_q_R
    teacher = policy.state()["teacher"]
    policy.learn(samples, objective, 1e-1)
    policy.update_teacher(policy.teacher_cfg)
    assert all(np.array_equal(teacher[n], a) for n, a in policy.state()["teacher"].items())
    assert not np.array_equal(found(policy, samples, objective).statistics[0].log_q_R, before)


def test_second_step_still_equals_oracle() -> None:
    policy, samples, objective = make_policy("qwen3-4bit"), make_samples(29), ObjectiveConfig()
    policy.learn(samples, objective, 1e-2)
    policy.update_teacher(policy.teacher_cfg)
    check_step(policy, None, samples, objective)
    stir(policy, 2)
    check_step(policy, None, samples, objective)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        *((architecture, {}) for architecture in ("qwen3", "gemma3", "qwen3_moe", "qwen3_5", "qwen3-4bit")),
        ("llama", {"kind": "full"}),
        ("qwen3_5", {"kind": "dora"}),
        ("qwen3", {"dropout": 0.3}),
    ],
)
def test_one_graph_and_block_by_block_give_the_same_gradient(architecture: str, options: dict[str, Any]) -> None:
    samples, objective = make_samples(11, "hybrid"), ObjectiveConfig(kind="hybrid")
    by_block = found(make_policy(architecture, grad_checkpoint=True, **options), samples, objective)
    kept = found(make_policy(architecture, grad_checkpoint=False, **options), samples, objective)
    assert kept.loss == pytest.approx(by_block.loss, rel=1e-6)
    assert_same_gradient(kept.grads, by_block.grads, 1e-5)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "qwen3_moe", "qwen3_5", "qwen3-4bit"])
@pytest.mark.parametrize("keep", [False, True])
def test_gradient_ignores_what_is_shared(architecture: str, keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends import packing

    monkeypatch.setattr(packing, "SHORTEST_SHARED", 2)
    monkeypatch.setattr(packing, "PREFILL", 3)
    policy, objective = (
        make_policy(architecture, grad_checkpoint=not keep, micro_batch_tokens=10_000),
        ObjectiveConfig(),
    )
    samples = [begun_alike(sample, number) for number, sample in enumerate(make_samples(13))]
    shared = found(policy, samples, objective)
    policy.model = replace(policy.model, shares=False)
    alone = found(policy, samples, objective)
    assert shared.loss == pytest.approx(alone.loss, rel=1e-5)
    # A recurrence makes much of a rounding; one BLAS rounds a row alike whatever stands beside it, another does not.
    assert_same_gradient(shared.grads, alone.grads, max(1e-5, rounding(policy, samples, objective, alone.grads)))


def begun_alike(sample: Any, number: int) -> Any:
    """The sample after a prompt of its own that begins as the others do, three deep, for student and teacher."""
    stem = np.arange(1, 12, dtype=np.int32)
    own = np.concatenate([stem, stem[: 2 + 3 * (number // 2)], np.array([20 + number % 2, 7], np.int32)])
    student = np.concatenate([own, sample.ids_T])
    teacher = np.concatenate([own[:-1], sample.teacher_ids])
    added = own.size - 1 if sample.teacher_ids.size else 0
    return replace(
        sample,
        student_ids=student,
        student_span=(own.size, student.size),
        teacher_ids=teacher if added else sample.teacher_ids,
        teacher_span=(sample.teacher_span[0] + added, sample.teacher_span[1] + added),
    )
