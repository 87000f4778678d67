"""A base held in 4 or 8 bits on torch: the gradient is that of the base which those bits stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_pairs import make_torch, torch_gradient
from requirements import needs
from small_policies import assert_same_gradient, folder, make_policy, make_samples
from small_runs import Watcher, assert_same, settings, trained

from sdpo_mlx.backends.registry import open_policy
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError

pytestmark = needs("torch", "bitsandbytes", extra="torch,bitsandbytes")

OBJECTIVE = ObjectiveConfig(kind="hybrid", support="full")


def opened_up(policy: Any, plain: Any) -> None:
    """Put what the four bits stand for into a policy with plain weights."""
    from bitsandbytes.functional import dequantize_4bit

    modules = dict(plain.model.whole.named_modules())
    count = 0
    for name, module in policy.model.whole.named_modules():
        weight = getattr(module, "weight", None)
        if hasattr(weight, "quant_state"):
            target = modules[name].weight
            target.data = dequantize_4bit(weight.data, weight.quant_state).to(target.dtype).reshape(target.shape)
            count += 1
    assert count


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_gradient_on_four_bits_is_that_of_what_they_stand_for(kind: str) -> None:
    like = make_policy("qwen3", kind=kind)
    held, plain = make_torch("qwen3", like=like, bits=4), make_torch("qwen3", like=like)
    opened_up(held, plain)
    samples = make_samples(3, "hybrid")
    loss, grads = torch_gradient(plain, samples, OBJECTIVE)
    ours, found = torch_gradient(held, samples, OBJECTIVE)
    assert ours == pytest.approx(loss, rel=1e-4)
    assert_same_gradient(found, grads, 1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_base_in_bits_learns_and_is_smaller(bits: int) -> None:
    like = make_policy("llama", micro_batch_tokens=10_000)
    policy = make_torch("llama", like=like, bits=bits)
    plain = make_torch("llama", like=like)
    sizes = [sum(p.numel() * p.element_size() for p in each.model.whole.parameters()) for each in (policy, plain)]
    assert sizes[0] < sizes[1]
    assert policy.info.parameters == plain.info.parameters
    samples = make_samples(1)
    losses = []
    for _ in range(12):
        losses.append(policy.learn(samples, ObjectiveConfig(support="full"), 1e-2).loss)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]


def test_run_on_four_bits_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    few = {"problems_per_step": 2, "group_size": 2, "max_tokens": 12}
    cfg = settings(
        model={"backend": "torch", "device": "cpu", "bits": 4},
        rollout=few,
        train={"steps": 2, "save_every": 1},
        eval={"problems": 1},
    )
    trained(tmp_path / "whole", cfg)
    assert trained(tmp_path / "parts", cfg, Watcher(after=1)) is None
    trained(tmp_path / "parts", cfg)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_all_weights_in_bits_are_refused() -> None:
    model = ModelConfig(name="q", backend="torch", device="cpu", bits=4, adapter=AdapterConfig(kind="full"))
    with pytest.raises(ConfigError, match="cannot be trained in full"):
        open_policy(folder("qwen3"), model, TeacherConfig(), TrainConfig())


def test_mlx_says_what_to_do_instead() -> None:
    with pytest.raises(ConfigError, match="quantized already"):
        open_policy(folder("qwen3"), ModelConfig(name="q", bits=4), TeacherConfig(), TrainConfig())
