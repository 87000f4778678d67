"""What a step on torch must not depend on: micro-batches, chunks, blocks run twice, memory that runs out."""

from __future__ import annotations

from typing import Any

import pytest
from backend_pairs import make_pair, torch_gradient
from requirements import needs_torch
from small_policies import assert_same_gradient, make_samples

from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.core.errors import ConfigError

pytestmark = needs_torch


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_torch_gradient_ignores_micro_batch_and_order(architecture: str) -> None:
    _, policy = make_pair(architecture)
    samples, objective = make_samples(11, "hybrid"), ObjectiveConfig(kind="hybrid", support="sequence", alpha=1.0)
    loss, grads = torch_gradient(policy, samples, objective)
    for budget, order in [(1, [0, 1, 2, 3, 4]), (10_000, [0, 1, 2, 3, 4]), (40, [4, 2, 0, 3, 1])]:
        policy.budget = budget
        again, other = torch_gradient(policy, [samples[i] for i in order], objective)
        assert again == pytest.approx(loss, rel=1e-5)
        assert_same_gradient(other, grads, 1e-5)


def test_torch_head_in_chunks_gives_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import loading

    _, policy = make_pair("llama", kind="full")
    samples, objective = make_samples(7, "hybrid"), ObjectiveConfig(kind="hybrid", support="sequence", alpha=1.0)
    loss, grads = torch_gradient(policy, samples, objective)
    monkeypatch.setattr(loading.Model, "chunk", property(lambda self: 3))
    again, other = torch_gradient(policy, samples, objective)
    assert again == pytest.approx(loss, rel=1e-5)
    assert_same_gradient(other, grads, 1e-5)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_blocks_run_twice_give_the_same_gradient(architecture: str, dropout: float) -> None:
    from dataclasses import replace

    _, policy = make_pair(architecture, dropout=dropout)
    samples, objective = make_samples(11, "hybrid"), ObjectiveConfig(kind="hybrid", support="full")
    policy.budget = 10_000
    if dropout:  # the same rows in the same order draw the same mask
        samples = [samples[0], samples[2], samples[4]]
    loss, grads = torch_gradient(policy, samples, objective)
    policy.model = replace(policy.model, recompute=True)
    again, other = torch_gradient(policy, samples, objective)
    assert again == pytest.approx(loss, rel=1e-5)
    assert_same_gradient(other, grads, 1e-5)
    assert "forward" not in vars(policy.model.body.layers[0])  # the block is as it was


def test_kept_activations_are_fewer_where_blocks_run_twice() -> None:
    from dataclasses import replace

    import torch

    from sdpo_mlx.backends.packing import pack
    from sdpo_mlx.backends.torch.gradient import hidden_states

    _, policy = make_pair("qwen3")
    samples, kept = make_samples(11), []
    unit = pack([s.student_ids[:3] for s in samples], [s.ids_T for s in samples], 10_000, share=False)[0]

    def counted(recompute: bool) -> int:
        kept.clear()
        model = replace(policy.model, recompute=recompute)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            hidden_states(model, unit)
        return sum(kept)

    assert counted(True) < counted(False) / 2


def test_torch_refuses_an_embedding_as_a_linear_layer() -> None:
    with pytest.raises(ConfigError, match="no linear layer"):
        make_pair("qwen3", keys=["model.embed_tokens"])


def test_step_that_runs_out_of_memory_is_taken_again_in_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sdpo_mlx.backends.learner import Learner
    from sdpo_mlx.backends.torch import policy as module

    _, policy = make_pair("qwen3", micro_batch_tokens=400)
    samples, objective = make_samples(11, "hybrid"), ObjectiveConfig(kind="hybrid", support="full")
    loss, grads = torch_gradient(policy, samples, objective)
    real, seen = Learner.gradient, []

    def short_of_memory(policy: Any, *rest: Any) -> Any:
        seen.append(policy.budget)
        if policy.budget > 100:
            for parameter in policy.parameters.values():
                parameter.grad = torch.full_like(parameter, 7.0)  # what an unfinished pass may leave behind
            raise torch.OutOfMemoryError
        return real(policy, *rest)

    monkeypatch.setattr(Learner, "gradient", short_of_memory)
    again, other = torch_gradient(policy, samples, objective)
    assert (seen, policy.budget) == ([400, 200, 100], 100)
    assert again == pytest.approx(loss, rel=1e-5)
    assert_same_gradient(other, grads, 1e-5)
    policy.budget = 400
    assert "parts of 100 tokens" in policy.learn(samples, objective, 1e-3).warnings[0]
    assert policy.learn(samples, objective, 1e-3).warnings == ()
    assert policy.info.details["micro_batch_tokens"] == "100"
    monkeypatch.setattr(module, "SMALLEST_BUDGET", 1_000)
    policy.budget = 400
    with pytest.raises(ConfigError, match="out of memory in a step on one rollout"):
        torch_gradient(policy, samples, objective)
