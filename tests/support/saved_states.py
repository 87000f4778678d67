"""Small training states, saved as checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdpo_mlx.core.seeding import rng
from sdpo_mlx.runs import checkpoint

META = {"base": {"id": "tiny", "hash": "a1"}, "config": {"train": {"learning_rate": 1e-4, "seed": 0}}, "best": 0.5}


def state_of(step: int) -> dict[str, dict[str, np.ndarray]]:
    draw = rng("checkpoint test", step)
    weights = {f"layers.{i}.lora_a": draw.normal(size=(16, 8)).astype(np.float32) for i in range(4)}
    return {
        "student": weights,
        "teacher": {name: (array * 0.5).T for name, array in weights.items()},
        "optimizer": {"step": np.array(step, dtype=np.uint64), "rate": np.array(0.1, dtype=np.float32)},
    }


def save(root: Path, step: int, **options: object) -> Path:
    return checkpoint.save(root, step, state_of(step), META, **options)  # type: ignore[arg-type]
