"""Which rank does which part of a step, and how the ranks' gradients become one; pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sdpo_mlx.backends.distributed.process_group import ProcessGroup
from sdpo_mlx.backends.distributed.serialization import decode, encode
from sdpo_mlx.backends.loss_head import Gradient, RowStatistics
from sdpo_mlx.types import DistillSample


def cut(costs: Sequence[float], size: int) -> list[list[int]]:
    """Split places 0, 1, ... into `size` runs of about equal cost, in order: shared prompts mostly stay together."""
    middles = np.cumsum(costs) - np.asarray(costs, dtype=float) / 2
    total = float(np.sum(costs)) or 1.0
    ranks = np.minimum((middles / total * size).astype(int), size - 1)
    return [np.flatnonzero(ranks == rank).tolist() for rank in range(size)]


def pooled(group: ProcessGroup, own: Gradient, samples: Sequence[DistillSample]) -> Gradient:
    """Return the sum of the ranks' gradients, with the statistics of all samples; equal on every rank."""
    if group.size == 1:
        return own
    columns = {
        name: np.concatenate([np.zeros(0, np.float32), *(getattr(each, name) for each in own.statistics)])
        for name in RowStatistics._fields
    }
    parts = [decode(each) for each in group.gather(encode([own.loss, list(own.suspects)], columns))]
    ends = np.cumsum([sample.ids_T.size for sample in samples])[:-1]
    # Ranks hold consecutive samples, so that their rows one after the other are in the order of the samples.
    whole = [np.split(np.concatenate([arrays[name] for _, arrays in parts]), ends) for name in RowStatistics._fields]
    return replace(
        own,
        loss=sum(loss for (loss, _), _ in parts),
        grads=group.total(own.grads),
        statistics=[RowStatistics(*figures) for figures in zip(*whole, strict=True)],
        suspects=tuple(i for (_, suspects), _ in parts for i in suspects),
    )
