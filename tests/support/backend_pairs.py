"""The same base, adapter and state on both backends, and what each says of the same step."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from published_models import published, write_published
from requirements import HAS_TORCH
from small_policies import assert_same_gradient, expected, folder, found, make_policy, make_samples, stir, term_size
from temp_folders import new_folder
from torch_architectures import VOCABULARY

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.types import DistillSample

BOTH = ("qwen3", "llama", "gemma3", "smollm2")  # architectures of both backends


def on_device() -> dict[str, Any]:
    """Settings of torch for the device of these tests; on a card `auto` would be bfloat16, which agrees less."""
    device = os.environ.get("SDPO_TEST_DEVICE", "cpu")
    return {"device": device, "dtype": "auto" if device == "cpu" else "float32"}


def make_torch(architecture: str = "qwen3", *, like: Any = None, **options: Any) -> Any:
    """A policy on torch with the settings of `like`, a policy on MLX, and its state."""
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    settings = {**on_device(), **options}
    model = ModelConfig(name=architecture, backend="torch", adapter=like.adapter, **settings)
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


@cache
def published_pair(name: str) -> tuple[Any, Any]:
    """Policies on MLX and torch that opened one folder of the architecture as published; equal student and teacher."""
    from sdpo_mlx.backends.mlx.policy import MLXPolicy
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    path = write_published(new_folder("published") / name, name)
    adapter = AdapterConfig(rank=4, scale=2.0, keys=list(published(name).keys))
    ours, theirs = (
        kind(path, ModelConfig(name=name, backend=backend, adapter=adapter, **more), TeacherConfig(), TrainConfig())
        for kind, backend, more in ((MLXPolicy, "mlx", {}), (TorchPolicy, "torch", on_device()))
    )
    stir(ours, scale=0.05)
    theirs.load_state(ours.state())
    return ours, theirs


@dataclass(frozen=True)
class Disagreement:
    """What torch and MLX say differently of one model."""

    log_probs: float  # largest absolute difference, student and teacher
    loss: float  # of an SDPO step, relative
    cosine: float  # 1 - cosine of the gradients of all adapter weights
    gradient: float  # relative error
    greedy: int  # greedy outputs that differ, of 3


def disagreement(ours: Any, theirs: Any) -> Disagreement:
    """Measure it: log-probs of given tokens, the step of `make_samples` with its teacher contexts, greedy decoding."""
    # Without the sample that learns from its reward: divergences do not cancel, so the loss is no small difference.
    samples = [s for s in make_samples(5, vocabulary=VOCABULARY) if s.distil_weight]
    sequences, spans = [s.student_ids for s in samples], [s.student_span for s in samples]
    scores = [p.score(role, sequences, spans) for role in ("student", "teacher") for p in (ours, theirs)]
    gaps = [
        float(np.abs(a.logps_T - b.logps_T).max())
        for pair in (scores[:2], scores[2:])
        for a, b in zip(*pair, strict=True)
    ]
    step = found(ours, samples, ObjectiveConfig())
    loss, grads = torch_gradient(theirs, samples, ObjectiveConfig())
    mine = {name: np.array(each, np.float64) for name, each in step.grads.items()}
    other = {name: each.astype(np.float64) for name, each in grads.items()}
    assert set(mine) == set(other)
    a, b = (np.concatenate([each[name].ravel() for name in sorted(mine)]) for each in (mine, other))
    sampling = SamplingParams(10, 0.0, 1.0, frozenset())
    prompts = [s.student_ids[: s.student_span[0]] for s in (samples[0], samples[2], samples[3])]
    rollouts = [{at: g.ids_T.tolist() for at, _, g in p.generate(prompts, sampling, [[1]] * 3)} for p in (ours, theirs)]
    return Disagreement(
        max(gaps),
        abs(step.loss - loss) / abs(loss),
        float(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))),
        float(np.linalg.norm(a - b) / np.linalg.norm(b)),
        sum(rollouts[0][at] != rollouts[1][at] for at in range(3)),
    )
