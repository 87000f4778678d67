"""One check before a run: the gradient that a backend computes for this model is the slope of the model's log-probs.

Architectures are taken apart without knowledge of their names, and kernels have backward passes of their own. So the
gradient of a small text is held against finite differences of the scores, which no gradient code touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sdpo_mlx.backends.distributed.process_group import SINGLE_PROCESS
from sdpo_mlx.backends.loss_head import TeacherSet, Weights
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.types import DistillSample, IntArray

if TYPE_CHECKING:
    from sdpo_mlx.backends.learner import Learner

TOKENS = 80  # of the text: mlx-lm sorts the rows of experts from 64 on
# Changes of the mean log-prob by which differences are tried: small ones drown in 16 bits, large ones bend, or send
# tokens to other experts.
CHANGES = (0.02, 0.004, 0.1, 0.0008, 0.5, 2e-4, 5e-5)
TOLERANCE = 0.2  # of the slope; a missing or doubled part of the gradient shows as much more
FLOAT16 = "float16 overflows while some models learn (mlx-lm 361): --set model.dtype=bfloat16 is safer, in a new run"

Pairs = Sequence[tuple[IntArray, IntArray]]  # prompts and responses


def check(learner: Learner) -> tuple[str, ...]:
    """Return warnings about float16 and layers without a gradient; raise ConfigError if the gradient is wrong."""
    ids = (np.arange(TOKENS, dtype=np.int32) * 37 + 11) % learner.info.vocab_size
    pairs = [(ids[:-6], ids[-6:]), (ids[:-6], ids[:5]), (ids[9:15], ids[-8:])]
    try:
        grads = gradient(learner, pairs)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:  # an unknown layer may fail in any way
        raise _untrainable(learner, f"its gradient fails: {' '.join(str(error).split())[:120]}") from error
    squares = {name: float((grad * grad).sum()) for name, grad in grads.items()}
    norm = float(np.sqrt(sum(squares.values())))
    if not (np.isfinite(norm) and norm > 0):
        raise _untrainable(learner, f"the norm of its gradient is {norm}")
    warnings = [FLOAT16] if learner.info.dtype == "float16" else []
    if not learner.adapter.dropout and (wrong := _wrong_slope(learner, pairs, grads, norm)):  # scores have no dropout
        if learner.info.dtype == "float32":
            raise _untrainable(learner, wrong)
        warnings.append(f"{wrong}: rounding in {learner.info.dtype}, or a wrong gradient (model.dtype=float32 tells)")
    layers: dict[str, float] = {}
    for name, square in squares.items():
        layer = name.rpartition(".lora_")[0] or name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0.0) + square
    still = [layer for layer, square in layers.items() if not square]
    if still and learner.adapter.kind != "full":
        warnings.append(f"{len(still)} of {len(layers)} adapted layers have no gradient, such as {still[0]}")
    return tuple(warnings)


def gradient(learner: Learner, pairs: Pairs) -> Weights:
    """Return the gradient of minus the mean log-prob of the responses, by the code of a learning step."""
    sequences = [np.concatenate(pair) for pair in pairs]
    spans = [(prompt.size, prompt.size + response.size) for prompt, response in pairs]
    none = np.zeros(0, np.int32)
    samples = [
        DistillSample("check", i, sequence, span, none, (0, 0), scores.logps_T, 0.0, policy_weight=1.0, advantage=1.0)
        for i, (sequence, span, scores) in enumerate(
            zip(sequences, spans, learner.score("student", sequences, spans), strict=True)
        )
    ]
    group, learner.group = learner.group, SINGLE_PROCESS
    try:
        with learner.learning():
            return learner.gradient(samples, ObjectiveConfig(kind="grpo"), 1.0, lambda: None).grads
    finally:
        learner.group = group


def _wrong_slope(learner: Learner, pairs: Pairs, grads: Weights, norm: float) -> str:
    """Return what is wrong unless the responses' mean log-prob falls by `norm` for each unit along the gradient."""
    uphill = {name: -grad / norm for name, grad in grads.items()}

    def mean_log_prob(step: float) -> float:
        sets = [TeacherSet({name: array + step * uphill[name] for name, array in learner.student.items()}, 1.0)]
        hidden = learner.hidden(sets, pairs)
        found = [
            learner.log_probs(h, sets, response, 0, 1.0)[0] for h, (_, response) in zip(hidden, pairs, strict=True)
        ]
        return float(np.concatenate(found).astype(np.float64).mean())

    slopes = []
    for change in CHANGES:
        step = change / norm
        slopes.append((mean_log_prob(step) - mean_log_prob(-step)) / (2 * step))
        if abs(slopes[-1] - norm) <= TOLERANCE * norm:
            return ""
    best = min(slopes, key=lambda slope: abs(slope - norm))
    return f"its gradient is {norm:.3g} where finite differences give {best:.3g}"


def _untrainable(learner: Learner, reason: str) -> ConfigError:
    kind = learner.info.details.get("architecture", learner.name)
    dtype = "bfloat16" if learner.info.dtype == "float16" else "float32"
    fix = f"use another model, another --backend, or --set model.dtype={dtype}"
    return ConfigError(f"the architecture {kind!r} cannot be trained: {reason}", where="model.name", fix=fix)
