"""Phase B of learning: head, loss and the gradient with respect to the hidden states, a chunk at a time.

The teacher is there as hidden states, so even the full-vocabulary divergence never holds the logits of more
than one chunk of response positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.backends.torch.adapter import Weights, active
from sdpo_mlx.backends.torch.loading import Model
from sdpo_mlx.backends.torch.losses import Rows, RowStatistics, row_loss
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.objective import token_scale
from sdpo_mlx.types import DistillSample

Hidden = tuple[Tensor, ...]  # a response's hidden states (T, d), one tensor a set of teacher weights


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
    """One lesson's passes through the head; `parameters` hold the student."""

    model: Model
    parameters: Mapping[str, nn.Parameter]
    lesson: LearnBatch

    def run(self, hidden_RD: Tensor, unit: Unit) -> tuple[float, Tensor, list[RowStatistics]]:
        """Loss, its gradient with respect to the hidden states, figures a member; a trained head keeps its own."""
        rows, teacher = self._rows(unit, hidden_RD), self._teacher_rows(unit, hidden_RD)
        total, cotangent_RD, figures = 0.0, torch.zeros_like(hidden_RD), []
        for part in chunks(hidden_RD.shape[0], self.model.chunk):
            targets = None if teacher is None else self.teacher_logits([each[part] for each in teacher])
            entering = hidden_RD[part].detach().requires_grad_()
            logits = self.model.logits(entering)
            loss, figure = row_loss(logits, targets, _part(rows, part), self.lesson.objective, self.lesson.temperature)
            loss.backward()
            assert entering.grad is not None
            cotangent_RD[part] = entering.grad
            total += float(loss.detach())
            figures.append([column.cpu().numpy() for column in figure])
        joined = [np.concatenate(column) for column in zip(*figures, strict=True)]
        ends = np.cumsum(unit.counts)[:-1]
        split = [RowStatistics(*columns) for columns in zip(*(np.split(c, ends) for c in joined), strict=True)]
        return total, cotangent_RD, split

    @torch.no_grad()
    def teacher_logits(self, hidden: Sequence[Tensor]) -> Tensor:
        """The teacher's logits of one chunk; the head is its own only where the head is trained."""
        return mixed_logits(self.model, self.parameters, hidden, self.lesson.teacher_sets)

    def _teacher_rows(self, unit: Unit, like_RD: Tensor) -> list[Tensor] | None:
        if all(self.lesson.teacher[member] is None for member in unit.members):
            return None
        columns = []
        for index in range(len(self.lesson.teacher_sets)):
            # A sample that is not distilled has weight 0; zeros keep its rows finite.
            parts = [
                like_RD.new_zeros((count, like_RD.shape[-1]))
                if (own := self.lesson.teacher[member]) is None
                else own[index]
                for member, count in zip(unit.members, unit.counts, strict=True)
            ]
            columns.append(torch.cat(parts))
        return columns

    def _rows(self, unit: Unit, hidden_RD: Tensor) -> Rows:
        samples, device = self.lesson.samples, hidden_RD.device
        counts, scale = [s.ids_T.size for s in samples], self.lesson.objective.aggregation
        distil = token_scale(counts, [s.distil_weight for s in samples], scale)
        policy = token_scale(counts, [s.policy_weight for s in samples], scale)
        members = list(unit.members)

        def spread(values: Any) -> Tensor:
            return _tensor(np.repeat(np.asarray(values, dtype=np.float32), unit.counts), device)

        rows = Rows(
            ids_R=_tensor(np.concatenate([samples[m].ids_T for m in members]).astype(np.int64), device),
            rollout_logps_R=_tensor(np.concatenate([samples[m].rollout_logps_T for m in members]), device),
            distil_R=spread(distil[members]),
            policy_R=spread(policy[members]),
            advantage_R=spread([samples[m].advantage for m in members]),
            sequence_R=torch.zeros(sum(unit.counts), device=device),
        )
        if self.lesson.objective.support != "sequence" or all(self.lesson.teacher[m] is None for m in members):
            return rows
        return Rows(**{**vars(rows), "sequence_R": spread(self._sequence_means(hidden_RD, unit, rows))})

    @torch.no_grad()
    def _sequence_means(self, hidden_RD: Tensor, unit: Unit, rows: Rows) -> list[float]:
        """log p - log q at the sampled tokens, averaged over each response: one more pass of the head."""
        teacher = self._teacher_rows(unit, hidden_RD)
        assert teacher is not None
        gaps = []
        for part in chunks(hidden_RD.shape[0], self.model.chunk):
            targets = self.teacher_logits([each[part] for each in teacher])
            logits = self.model.logits(hidden_RD[part])
            _, figure = row_loss(logits, targets, _part(rows, part), self.lesson.objective, self.lesson.temperature)
            gaps.append((figure.log_p_R - figure.log_q_R).cpu().numpy())
        return [float(gap.mean()) for gap in np.split(np.concatenate(gaps), np.cumsum(unit.counts)[:-1])]


def mixed_logits(
    model: Model, parameters: Mapping[str, nn.Parameter], hidden: Sequence[Tensor], sets: Sequence[TeacherSet]
) -> Tensor:
    """Logits (R, V) of hidden states, one tensor a set, in the sets' shares; float32."""
    trained = {id(each) for each in model.head.parameters()}
    names = [name for name, each in parameters.items() if id(each) in trained]
    total: Tensor | float = 0.0
    for states, source in zip(hidden, sets, strict=True):
        with active(parameters, {name: source.weights[name] for name in names}):
            total = total + source.share * model.logits(states).float()
    assert isinstance(total, Tensor)
    return total


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `rows`."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _part(rows: Rows, part: slice) -> Rows:
    return Rows(**{name: tensor[part] for name, tensor in vars(rows).items()})


def _tensor(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
