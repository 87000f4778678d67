"""Phase B of a step without its arithmetic: which response positions go through the loss head together, and with what.

The teacher is there as hidden states, so even the full-vocabulary divergence never holds the logits of more than one
chunk of response positions. Arrays are the backend's; everything computed here is numpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.objective import token_scale
from sdpo_mlx.types import DistillSample

Weights = dict[str, Any]  # named arrays of the backend
Hidden = tuple[Any, ...]  # a response's hidden states (T, d), one array per set of teacher weights


@dataclass(frozen=True)
class TeacherSet:
    """Weights of the teacher and their share of its logits; a trust region mixes two sets."""

    weights: Weights
    share: float


@dataclass(frozen=True)
class LearnBatch:
    """What one step learns from: samples, their teacher's hidden states (None: not distilled), the objective."""

    samples: Sequence[DistillSample]
    teacher: Sequence[Hidden | None]
    teacher_sets: Sequence[TeacherSet]
    objective: ObjectiveConfig
    temperature: float


@dataclass(frozen=True)
class Rows:
    """R response tokens: the sampled ids and what multiplies each half of the loss (float32).

    `distil_R` and `policy_R` are weights already divided by their normaliser; 0 means that the half is absent.
    `sequence_R` is the coefficient of support `sequence` (zeros otherwise). Arrays are numpy's or the backend's.
    """

    ids_R: Any
    rollout_logps_R: Any
    distil_R: Any
    policy_R: Any
    advantage_R: Any
    sequence_R: Any


class RowStatistics(NamedTuple):
    """Figures of each row, detached from the gradient; without a teacher `divergence_R` and `log_q_R` are 0.

    `divergence_R` is unweighted, and log p(y) - log q(y) if the support is sampled or sequence.
    `entropy_R` is the student's over the whole vocabulary, `ratio_R` is p(y) / p_0(y) before any clip.
    """

    divergence_R: Any
    entropy_R: Any
    log_p_R: Any
    log_q_R: Any
    ratio_R: Any


@dataclass(frozen=True)
class Gradient:
    """A step's loss, its gradient by name, and statistics per sample (numpy).

    `suspects` are the samples of the units whose gradient was not finite. `teacher_seconds` is the teacher's forward.
    """

    loss: float
    grads: Weights
    statistics: list[RowStatistics]
    suspects: tuple[int, ...]
    teacher_seconds: float


class GradientPass(ABC):
    """Adds up the gradient of a batch, one unit after the other. A backend supplies the array functions.

    `share` is whether prompts that begin alike may run once, `chunk` how many response positions the head sees at once.
    """

    grads: Weights

    def __init__(self, batch: LearnBatch, chunk: int, share: bool) -> None:
        self.batch, self.chunk, self.share = batch, chunk, share

    @abstractmethod
    def add(self, unit: Unit, seed: int) -> tuple[float, list[RowStatistics], bool]:
        """Add a unit's gradient to `grads`. Return its loss, statistics per member, and whether it was finite."""

    @abstractmethod
    def teacher_logits(self, hidden: Sequence[Any]) -> Any:
        """Logits (R, V) of the teacher's hidden states, one array per teacher set; outside any gradient."""

    @abstractmethod
    def statistics(self, hidden_RD: Any, teacher_RV: Any, rows: Rows) -> RowStatistics:
        """The statistics (the backend's arrays) of rows, without a gradient."""

    @abstractmethod
    def concatenate(self, arrays: list[Any]) -> Any:
        """Join arrays along the first axis."""

    @abstractmethod
    def on_device(self, rows: Rows) -> Rows:
        """Return the rows of a unit as the backend's arrays."""

    def chunks(self, unit: Unit, hidden_RD: Any) -> Iterator[tuple[slice, Any, Rows]]:
        """Yield the unit's response positions in chunks, with the teacher's logits (None: nothing is distilled)."""
        teacher, rows = self._teacher_rows(unit, hidden_RD), self._rows(unit)
        if teacher is not None and self.batch.objective.support == "sequence":
            rows = replace(rows, sequence_R=self._sequence_means(unit, hidden_RD, teacher, rows))
        rows = self.on_device(rows)
        for part in slices(hidden_RD.shape[0], self.chunk):
            logits = None if teacher is None else self.teacher_logits([states[part] for states in teacher])
            yield part, logits, rows_of(rows, part)

    def _teacher_rows(self, unit: Unit, hidden_RD: Any) -> list[Any] | None:
        """The teacher's hidden states (R, d) of the unit's positions, one array per teacher set."""
        found = [self.batch.teacher[member] for member in unit.members]
        if all(states is None for states in found):
            return None
        # A sample that is not distilled has weight 0; the student's own states keep its rows finite.
        ends = np.cumsum(unit.counts)
        own = [hidden_RD[end - count : end] for end, count in zip(ends.tolist(), unit.counts, strict=True)]
        return [
            self.concatenate([mine if states is None else states[n] for states, mine in zip(found, own, strict=True)])
            for n in range(len(self.batch.teacher_sets))
        ]

    def _rows(self, unit: Unit) -> Rows:
        samples, scale, own = self.batch.samples, self.batch.objective.aggregation, list(unit.members)
        members, counts = [samples[m] for m in own], [s.ids_T.size for s in samples]
        # Normalised over the whole batch, so that units, chunks and ranks simply add up.
        distil = token_scale(counts, [s.distil_weight for s in samples], scale)[own]
        policy = token_scale(counts, [s.policy_weight for s in samples], scale)[own]
        weight_R = np.concatenate([s.weights_T for s in members])
        return Rows(
            ids_R=np.concatenate([s.ids_T for s in members]),
            rollout_logps_R=np.concatenate([s.rollout_logps_T for s in members]),
            distil_R=_repeated(distil, unit) * weight_R,
            policy_R=_repeated(policy, unit) * weight_R,
            advantage_R=_repeated([s.advantage for s in members], unit),
            sequence_R=np.zeros(sum(unit.counts), np.float32),
        )

    def _sequence_means(self, unit: Unit, hidden_RD: Any, teacher: Sequence[Any], rows: Rows) -> Any:
        """log p - log q at the sampled tokens, averaged over each response: one more pass of the head."""
        gaps, rows = [], self.on_device(rows)
        for part in slices(hidden_RD.shape[0], self.chunk):
            logits = self.teacher_logits([states[part] for states in teacher])
            found = self.statistics(hidden_RD[part], logits, rows_of(rows, part))
            gaps.append(found.log_p_R - found.log_q_R)
        gap_R = np.array(self.concatenate(gaps).tolist(), dtype=np.float32)
        return _repeated([gap.mean() for gap in np.split(gap_R, np.cumsum(unit.counts)[:-1])], unit)


def slices(rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `rows`."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def rows_of(rows: Rows, part: slice) -> Rows:
    """Some of the rows."""
    return Rows(**{name: array[part] for name, array in vars(rows).items()})


def by_member(chunks: Sequence[RowStatistics], unit: Unit) -> list[RowStatistics]:
    """The statistics (numpy) of a unit's chunks, split into those of each member."""
    ends = np.cumsum(unit.counts)[:-1]
    columns = [np.split(np.concatenate(column), ends) for column in zip(*chunks, strict=True)]
    return [RowStatistics(*figures) for figures in zip(*columns, strict=True)]


def _repeated(values: Any, unit: Unit) -> Any:
    """One value per member, repeated for each token of its response."""
    return np.repeat(np.asarray(values, dtype=np.float32), unit.counts)
