"""What an `Update` says of a step's tokens, from each backend's figures; pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdpo_mlx.types import DistillSample


def unfinished(
    samples: Sequence[DistillSample], statistics: Sequence[tuple[Any, ...]], suspects: Sequence[int]
) -> tuple[str, ...]:
    """The problems whose numbers are not finite, so that the event can name them.

    Where a gradient alone is not finite, all problems of its micro-batch (`suspects`) are named.
    """
    faults = [
        s.problem_id
        for s, figures in zip(samples, statistics, strict=True)
        if not all(np.isfinite(column).all() for column in (*figures, s.rollout_logps_T, _multipliers(s)))
    ]
    return tuple(dict.fromkeys(faults or [samples[i].problem_id for i in suspects]))


def step_figures(
    samples: Sequence[DistillSample], statistics: Sequence[Any], importance_clip: float | None
) -> dict[str, Any]:
    """Means over counted tokens, and log q - log p a sample, for `Update`."""
    pairs = list(zip(samples, statistics, strict=True))
    distilled = [figures.divergence_R for s, figures in pairs if s.distil_weight > 0]
    ratio = np.concatenate([figures.ratio_R for _, figures in pairs])
    nothing = np.zeros(0, np.float32)
    return {
        "divergence": float(np.concatenate(distilled).mean()) if distilled else 0.0,
        "entropy": float(np.concatenate([figures.entropy_R for _, figures in pairs]).mean()),
        "importance_mean": float(ratio.mean()),
        "importance_clipped": float((ratio > importance_clip).mean()) if importance_clip is not None else 0.0,
        "tokens": int(ratio.size),
        "divergence_T": tuple(f.log_q_R - f.log_p_R if s.distil_weight > 0 else nothing for s, f in pairs),
    }


def _multipliers(sample: DistillSample) -> tuple[float, float, float]:
    return sample.distil_weight, sample.policy_weight, sample.advantage
