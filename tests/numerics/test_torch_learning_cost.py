"""A learning step on torch: waits for the device, bytes kept for the backward pass, prompts shared in one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from backend_pairs import torch_gradient
from requirements import needs_torch
from small_policies import assert_same_gradient, folder, make_samples, stir

from sdpo_mlx.backends.packing import Unit, pack, tree_of
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig

pytestmark = needs_torch

PROMPT = np.arange(24, dtype=np.int32) + 2
HYBRID = ObjectiveConfig(kind="hybrid", support="full", alpha=0.5)


def opened(architecture: str = "qwen3", dtype: str = "float32", adapter: Any = None, **train: Any) -> Any:
    """A policy on a CPU whose student and teacher have moved from the base."""
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    kind = AdapterConfig(**{"rank": 4, **(adapter or {})})
    model = ModelConfig(name=architecture, backend="torch", device="cpu", dtype=dtype, adapter=kind)
    policy = TorchPolicy(folder(architecture), model, TeacherConfig(), TrainConfig(micro_batch_tokens=10_000, **train))
    stir(policy, scale=0.05)
    return policy


def group_unit() -> Unit:
    """Twelve rollouts of 4 tokens after one prompt of 24."""
    return pack([PROMPT] * 12, [np.arange(4, dtype=np.int32) + at for at in range(12)], 10_000)[0]


def kept_by(policy: Any, run: Callable[[], Any]) -> int:
    from torch_counts import kept_bytes

    with kept_bytes(policy.model.whole.parameters()) as kept:
        run()
    return sum(kept.values())


@pytest.mark.parametrize("support", ["top_k", "sequence"])
def test_learning_waits_for_the_device_once_a_unit(monkeypatch: pytest.MonkeyPatch, support: Any) -> None:
    from torch_counts import Fetches, Operations

    from sdpo_mlx.backends.torch.model import Model

    monkeypatch.setattr(Model, "chunk", property(lambda self: 3))
    policy, objective = opened(), ObjectiveConfig(kind="hybrid", support=support, alpha=1.0)
    with Fetches() as fetches, Operations() as operations:
        policy.learn(make_samples(5, "hybrid"), objective, 1e-3)
    units = 2
    # transformers 5.24 looks for packed rows in each pass without a cache (masking_utils.find_packed_sequence_indices):
    # once for the teacher, once for the student. The mean of a sequence is needed before its loss.
    assert fetches.count == units * (1 + (support == "sequence")) + 2 + 1  # and the norm of the step
    assert operations.counts["aten._local_scalar_dense.default"] == 2 + 1
    # Of 3 blocks and chunks of 3 rows, with torch 2.14 and transformers 5.24: 3,087 and 3,397.
    assert sum(operations.counts.values()) < 3_700


def test_dropout_layers_are_left_alone_if_they_drop_nothing() -> None:
    import torch

    policy = opened()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    torch_gradient(policy, make_samples(5, "hybrid"), HYBRID)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(opened(adapter={"dropout": 0.3}).gradient_pass(_batch()).dropout) == 3 * 7


def _batch() -> Any:
    from sdpo_mlx.backends.loss_head import LearnBatch

    return LearnBatch([], [], [], HYBRID, 1.0)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_prompts_shared_in_one_row_give_the_gradient_of_units_with_a_cache(architecture: str) -> None:
    policy, samples = opened(architecture), make_samples(11, "hybrid")
    loss, grads = torch_gradient(policy, samples, HYBRID)
    for recompute in (False, True):
        policy.model = replace(policy.model, tree="dense", recompute=recompute)
        again, other = torch_gradient(policy, samples, HYBRID)
        assert again == pytest.approx(loss, rel=1e-5)
        assert_same_gradient(other, grads, 1e-5)  # 2.7e-6 was measured
        assert "forward" not in vars(policy.model.body.layers[0])


def test_row_of_a_tree_keeps_fewer_bytes_than_rows_that_copy_their_prompt() -> None:
    from sdpo_mlx.backends.torch.gradient import hidden_states

    policy, unit = opened(), group_unit()
    cached = kept_by(policy, lambda: hidden_states(policy.model, unit))
    tree = kept_by(policy, lambda: hidden_states(replace(policy.model, tree="dense"), unit))
    again = replace(policy.model, tree="dense", recompute=True)
    assert tree < 0.85 * cached
    assert kept_by(policy, lambda: hidden_states(again, unit)) < 0.2 * tree


def test_blocks_that_run_again_share_prompts_on_a_cpu_too() -> None:
    policy = opened(grad_checkpoint=True)
    assert policy.model.tree == "dense"
    assert policy.gradient_pass(_batch()).share
    assert opened().model.tree is None  # there a cache is a tenth faster


@pytest.mark.parametrize("architecture", ["gemma3"])
def test_layers_with_windows_keep_their_cache(architecture: str) -> None:
    policy = opened(architecture, grad_checkpoint=True)
    assert (policy.model.tree, policy.model.shares) == (None, True)
    assert not policy.gradient_pass(_batch()).share


def test_tree_that_is_not_the_whole_model_s_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import model

    mask_of = model.mask_of
    monkeypatch.setattr(
        model, "mask_of", lambda kind, config, until_T, *rest: mask_of(kind, config, until_T * 0 + 99, *rest)
    )
    assert opened(grad_checkpoint=True).model.tree is None  # rows would attend to their neighbours


def test_eager_attention_and_flex_attention_take_the_same_tree() -> None:
    import torch
    from torch.nn.attention.flex_attention import create_mask

    from sdpo_mlx.backends.torch.gradient import hidden_states
    from sdpo_mlx.backends.torch.tree_attention import mask_of

    policy, unit = opened(), group_unit()
    config, until_T, cpu = policy.model.body.config, tree_of(unit).until_T, torch.device("cpu")
    dense = mask_of("dense", config, until_T, torch.float32, cpu)
    flex = mask_of("flex", config, until_T, torch.float32, cpu)
    size = until_T.size
    assert flex.shape == (1, 1, size, size)
    assert torch.equal(create_mask(flex.mask_mod, 1, 1, size, size, device="cpu"), dense)
    with torch.no_grad():
        right = hidden_states(replace(policy.model, tree=None), unit)
        ours = policy.model.whole.set_attn_implementation("eager")
        assert ours is None
        padded = tree_of(unit).padded(100)
        states = replace(policy.model, tree="dense").tree_hidden(padded)[padded.take_R]
    torch.testing.assert_close(states, right, atol=2e-5, rtol=2e-5)


def test_chunks_of_the_head_grow_with_free_memory_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sdpo_mlx.backends.base import TORCH_CHUNK_BYTES
    from sdpo_mlx.backends.torch import model

    found = []
    for free in (2, 30, 60, 130):
        monkeypatch.setattr(model, "free_bytes", lambda _, free=free: free * 2**30)
        found.append(model.chunk_bytes(torch.device("cuda", 0)))
    assert found == [TORCH_CHUNK_BYTES, 256 * 2**20, model.LARGEST_CHUNK, model.LARGEST_CHUNK]
    assert model.chunk_bytes(torch.device("cpu")) == TORCH_CHUNK_BYTES
