"""Which rank does which part of a step, and how the parts' figures come together again; pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from sdpo_mlx.backends.distributed.process_group import ProcessGroup
from sdpo_mlx.backends.distributed.serialization import decode, encode
from sdpo_mlx.types import DistillSample

Row = TypeVar("Row", bound=tuple[Any, ...])
Parts = tuple[float, list[Row], tuple[int, ...]]  # loss, figures a sample, samples with a gradient that is not finite


def cut(costs: Sequence[float], size: int) -> list[list[int]]:
    """Places 0, 1, … in `size` runs of about equal cost, in order: what shares a prompt mostly stays together."""
    middles = np.cumsum(costs) - np.asarray(costs, dtype=float) / 2
    total = float(np.sum(costs)) or 1.0
    ranks = np.minimum((middles / total * size).astype(int), size - 1)
    return [np.flatnonzero(ranks == rank).tolist() for rank in range(size)]


def shares(samples: Sequence[DistillSample], size: int) -> list[list[int]]:
    """The places of the samples that each rank learns from."""
    return cut([sample.student_ids.size + sample.teacher_ids.size for sample in samples], size)


def pooled(
    world: ProcessGroup,
    own: Parts[Row],
    samples: Sequence[DistillSample],
    make: Callable[..., Row],
    names: Sequence[str],
) -> Parts[Row]:
    """The parts of all ranks as one, equal on every rank; `names` are the columns of a sample's figures."""
    if world.size == 1:
        return own
    loss, figures, suspects = own
    columns = {
        name: np.concatenate([np.asarray(getattr(f, name), np.float32) for f in figures] or [np.zeros(0, np.float32)])
        for name in names
    }
    heard = [decode(each) for each in world.gather(encode([loss, list(suspects)], columns))]
    ends = np.cumsum([sample.ids_T.size for sample in samples])[:-1]
    whole = [np.split(np.concatenate([arrays[name] for _, arrays in heard]), ends) for name in names]
    rows = [make(**dict(zip(names, row, strict=True))) for row in zip(*whole, strict=True)]
    return sum(part[0] for part, _ in heard), rows, tuple(i for part, _ in heard for i in part[1])
