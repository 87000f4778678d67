"""Phase B of learning: head, loss and the gradient with respect to the hidden states, a chunk at a time.

The teacher is there as hidden states, so even the full-vocabulary divergence never holds the logits of more
than one chunk of response positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from sdpo_mlx.backends.mlx.adapter import Weights, active, assign
from sdpo_mlx.backends.mlx.blockwise import outside_blocks
from sdpo_mlx.backends.mlx.losses import Rows, RowStatistics, row_loss
from sdpo_mlx.backends.mlx.model import Model
from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.objective import token_scale
from sdpo_mlx.types import DistillSample

Hidden = tuple[mx.array, ...]  # a response's hidden states (T, d), one array a set of teacher weights


@dataclass(frozen=True)
class TeacherSet:
    """Weights of the teacher and their share of its logits; a trust region mixes two sets."""

    weights: Weights
    share: float


@dataclass(frozen=True)
class LearnBatch:
    """What one step learns from: samples, their teacher's hidden states (None: not distilled), the objective.

    `own` are the places of the samples that this rank answers for; the others only count in the normalisation.
    """

    samples: Sequence[DistillSample]
    teacher: Sequence[Hidden | None]
    teacher_sets: Sequence[TeacherSet]
    objective: ObjectiveConfig
    temperature: float
    seed: int
    own: Sequence[int]


@dataclass(frozen=True)
class Head:
    """One lesson's passes through the head, with the student's weights in the model."""

    model: Model
    student: Weights
    lesson: LearnBatch

    def run(self, hidden_RD: mx.array, unit: Unit) -> tuple[float, mx.array, Weights, list[RowStatistics]]:
        """Phase B: loss and its gradient with respect to the hidden states, chunk by chunk."""
        rows, teacher = self._rows(unit, hidden_RD), self._teacher_rows(unit, hidden_RD)
        names = outside_blocks(self.model.trunk, self.student)
        total, cotangents, grads, figures = 0.0, [], {name: mx.zeros_like(self.student[name]) for name in names}, []
        for part in chunks(hidden_RD.shape[0], self.model.chunk):
            targets = None if teacher is None else self._teacher_logits([h[part] for h in teacher], names)
            loss, figure, (cotangent, *extra) = self._chunk(hidden_RD[part], targets, _part(rows, part), names)
            mx.eval(loss, figure, cotangent, extra)
            total += float(loss.item())
            cotangents.append(cut(cotangent))
            figures.append([np.asarray(array) for array in figure])
            grads = {name: grads[name] + cut(array) for name, array in zip(names, extra, strict=True)}
        joined = [np.concatenate(column) for column in zip(*figures, strict=True)]
        ends = np.cumsum(unit.counts)[:-1]
        split = [RowStatistics(*columns) for columns in zip(*(np.split(c, ends) for c in joined), strict=True)]
        return total, mx.concatenate(cotangents), grads, split

    def _chunk(self, hidden: mx.array, targets: mx.array | None, rows: Rows, names: list[str]) -> Any:
        def loss(hidden: mx.array, *weights: mx.array) -> tuple[mx.array, RowStatistics]:
            assign(self.model.whole, dict(zip(names, weights, strict=True)))
            return row_loss(
                self.model.trunk.head(hidden), targets, rows, self.lesson.objective, self.lesson.temperature
            )

        own = [self.student[name] for name in names]
        (value, figure), grads = mx.value_and_grad(loss, argnums=list(range(1 + len(own))))(hidden, *own)
        assign(self.model.whole, dict(zip(names, own, strict=True)))
        # One argument's gradient comes without its list.
        return value, figure, list(grads) if own else [grads]

    def _teacher_logits(self, hidden: Sequence[mx.array], names: list[str]) -> mx.array:
        """The teacher's logits of one chunk; the head is its own only where the head is trained."""
        total: mx.array | float = 0.0
        for states, source in zip(hidden, self.lesson.teacher_sets, strict=True):
            with active(self.model.whole, {n: source.weights[n] for n in names}, {n: self.student[n] for n in names}):
                total = total + source.share * self.model.trunk.head(states).astype(mx.float32)
        assert isinstance(total, mx.array)
        return total

    def _teacher_rows(self, unit: Unit, like_RD: mx.array) -> list[mx.array] | None:
        if all(self.lesson.teacher[member] is None for member in unit.members):
            return None
        columns = []
        for index in range(len(self.lesson.teacher_sets)):
            # A sample that is not distilled has weight 0; zeros keep its rows finite.
            parts = [
                mx.zeros((count, like_RD.shape[-1]), like_RD.dtype)
                if (own := self.lesson.teacher[member]) is None
                else own[index]
                for member, count in zip(unit.members, unit.counts, strict=True)
            ]
            columns.append(mx.concatenate(parts))
        return columns

    def _rows(self, unit: Unit, hidden_RD: mx.array) -> Rows:
        samples = self.lesson.samples
        counts = [s.ids_T.size for s in samples]
        scale = self.lesson.objective.aggregation
        distil = token_scale(counts, [s.distil_weight for s in samples], scale)
        policy = token_scale(counts, [s.policy_weight for s in samples], scale)
        members = list(unit.members)

        def spread(values: Any) -> mx.array:
            return mx.array(np.repeat(np.asarray(values, dtype=np.float32), unit.counts))

        rows = Rows(
            ids_R=mx.array(np.concatenate([samples[m].ids_T for m in members])),
            rollout_logps_R=mx.array(np.concatenate([samples[m].rollout_logps_T for m in members])),
            distil_R=spread(distil[members]),
            policy_R=spread(policy[members]),
            advantage_R=spread([samples[m].advantage for m in members]),
            sequence_R=mx.zeros(sum(unit.counts)),
        )
        if self.lesson.objective.support != "sequence" or all(self.lesson.teacher[m] is None for m in members):
            return rows
        return Rows(**{**vars(rows), "sequence_R": spread(self._sequence_means(hidden_RD, unit, rows))})

    def _sequence_means(self, hidden_RD: mx.array, unit: Unit, rows: Rows) -> list[float]:
        """log p - log q at the sampled tokens, averaged over each response: one more pass of the head."""
        teacher = self._teacher_rows(unit, hidden_RD)
        assert teacher is not None
        names, gaps = outside_blocks(self.model.trunk, self.student), []
        for part in chunks(hidden_RD.shape[0], self.model.chunk):
            targets = self._teacher_logits([h[part] for h in teacher], names)
            logits = self.model.trunk.head(hidden_RD[part])
            _, figure = row_loss(logits, targets, _part(rows, part), self.lesson.objective, self.lesson.temperature)
            gaps.append(np.asarray(figure.log_p_R - figure.log_q_R))
        return [float(gap.mean()) for gap in np.split(np.concatenate(gaps), np.cumsum(unit.counts)[:-1])]


def cut(array: mx.array) -> mx.array:
    """A copy that no graph follows: inside another gradient, MLX keeps all that led to an array alive with it."""
    return mx.array(np.array(array.astype(mx.float32))).astype(array.dtype)


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `rows`."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _part(rows: Rows, part: slice) -> Rows:
    return Rows(**{name: array[part] for name, array in vars(rows).items()})
