"""The same base, adapter and state on both backends, and what each says of the same step."""

from __future__ import annotations

import os
from typing import Any

from small_policies import folder, make_policy

from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.types import DistillSample


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
