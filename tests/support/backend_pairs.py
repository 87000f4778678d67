"""The same base, adapter and state on both backends, and what each says of the same step."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from requirements import HAS_TORCH
from small_policies import assert_same_gradient, expected, folder, found, make_policy, term_size

from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.types import DistillSample

BOTH = ("qwen3", "llama", "gemma3", "smollm2")  # architectures of both backends


def make_torch(architecture: str = "qwen3", *, like: Any = None, **options: Any) -> Any:
    """A policy on torch with the settings of `like`, a policy on MLX, and its state."""
    from sdpo_mlx.backends.torch.policy import TorchPolicy
    from sdpo_mlx.config import ModelConfig

    device = os.environ.get("SDPO_TEST_DEVICE", "cpu")
    model = ModelConfig(name=architecture, backend="torch", device=device, adapter=like.adapter, **options)
    policy = TorchPolicy(folder(architecture), model, like.teacher_cfg, like.train_cfg)
    policy.load_state(like.state())
    return policy


def make_pair(architecture: str = "qwen3", **options: Any) -> tuple[Any, Any]:
    """Equal policies on MLX and torch."""
    ours = make_policy(architecture, **options)
    return ours, make_torch(architecture, like=ours)


def make_pair_where_possible(architecture: str = "qwen3", **options: Any) -> tuple[Any, Any]:
    """Equal policies on MLX and torch; without torch, or where only MLX has it, the second is None."""
    ours = make_policy(architecture, **options)
    embeds = any("embed_tokens" in key for key in options.get("keys", ()))
    return ours, make_torch(architecture, like=ours) if HAS_TORCH and architecture in BOTH and not embeds else None


def torch_gradient(
    policy: Any, samples: list[DistillSample], objective: ObjectiveConfig, temperature: float = 1.0
) -> tuple[float, dict[str, Any]]:
    """Loss and gradient (mlx-lm's shapes) of a step that is then not taken."""
    from sdpo_mlx.backends.torch.adapter import to_numpy

    kept: list[Any] = []
    take = policy._apply

    def seen(found: Any, *rest: Any) -> Any:
        kept.append((found.loss, to_numpy(found.grads)))
        return take(found, *rest)

    policy._apply = seen
    try:
        policy.learn(samples, objective, 0.0, temperature=temperature)
    finally:
        policy._apply = take
    return kept[0]


def check_step(
    ours: Any, theirs: Any, samples: list[DistillSample], objective: ObjectiveConfig, temperature: float = 1.0
) -> None:
    """Loss and gradient on MLX, and on torch unless `theirs` is None, are the float64 oracle's and each other's."""
    loss, grads = expected(ours, samples, objective, temperature)
    on_mlx = found(ours, samples, objective, temperature)
    # Terms of either sign may cancel: the rounding of their sum is relative to their size, not to what is left.
    size = max(abs(loss), term_size(ours, samples, objective, temperature))
    assert on_mlx.loss == pytest.approx(loss, rel=0, abs=1e-5 * size)
    assert set(on_mlx.grads) == set(grads)
    assert_same_gradient(on_mlx.grads, grads)
    if theirs is None:
        return
    torch_loss, torch_grads = torch_gradient(theirs, samples, objective, temperature)
    assert torch_loss == pytest.approx(loss, rel=0, abs=1e-5 * size)
    assert torch_loss == pytest.approx(on_mlx.loss, rel=0, abs=1e-5 * size)
    assert set(torch_grads) == set(grads)
    assert_same_gradient(torch_grads, grads)
    assert_same_gradient(torch_grads, {name: np.array(each) for name, each in on_mlx.grads.items()})
