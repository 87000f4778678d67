"""The learning rate of a step: warm-up, then constant, linear or cosine; a pure function."""

from __future__ import annotations

import math

from sdpo_mlx.config import TrainConfig


def learning_rate(step: int, cfg: TrainConfig) -> float:
    """The rate of the step that starts after `step` completed ones."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / (cfg.warmup_steps + 1)
    share = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    factor = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
    return cfg.learning_rate * factor[cfg.schedule]
