"""Learning steps that are saved and resumed, and the memory that repeated steps leave behind."""

from __future__ import annotations

import gc
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np

from sdpo_mlx.backends.mlx.policy import MLXPolicy
from sdpo_mlx.backends.mlx.self_test import generation
from sdpo_mlx.backends.mlx.self_test.gradients import OBJECTIVE, step_samples
from sdpo_mlx.backends.mlx.self_test.models import TestModel, open_folder, write

RATE = 1e-3
LENGTHS = (4, 40, 9, 23, 1, 31)
WARM = 2  # rounds before memory is read: the first ones make what is kept


def resume_gap(model: TestModel) -> tuple[float, bool]:
    """Return the largest difference between three steps in one go, and two, a saved state and a third.

    And whether the device promises that there is none.
    """
    with TemporaryDirectory(prefix="sdpo-self-test-") as name:
        folder = Path(name)
        write(folder, model.config())
        whole, first, second = (open_folder(folder, model.dtype) for _ in range(3))
    for tokens in LENGTHS[:3]:
        _step(whole, tokens)
    for tokens in LENGTHS[:2]:
        _step(first, tokens)
    second.load_state(first.state())
    _step(second, LENGTHS[2])
    ends = [policy.state() for policy in (whole, second)]
    gaps = [
        np.abs(array.astype(np.float64) - ends[1][part][name].astype(np.float64)).max()
        for part in ends[0]
        for name, array in ends[0][part].items()
    ]
    return float(np.max(gaps)), whole.info.bitwise


def _step(policy: MLXPolicy, tokens: int) -> None:
    update = policy.learn(step_samples(tokens), OBJECTIVE, RATE)
    if not update.applied:
        raise ArithmeticError(f"a step was refused: {update.reason}")
    policy.update_teacher(policy.teacher_cfg)


def memory_growth(policy: MLXPolicy, rounds: int = 4) -> int:
    """Return the bytes by which arrays in memory grow while rounds of generation and learning repeat."""
    sizes = []
    for _ in range(WARM + rounds):
        generation.batch(policy, generation.prompts())
        for tokens in LENGTHS:
            _step(policy, tokens)
        gc.collect()
        mx.clear_cache()
        sizes.append(mx.get_active_memory())
    return sizes[-1] - sizes[WARM - 1]
