"""The gradient of one step in three phases, so that neither a batch's logits nor a trunk's activations exist.

(A) The trunk runs block after block; each block's input is kept. (B) Head, loss and the gradient with respect
to the hidden states, a chunk of response positions at a time; the teacher is there as hidden states, so even
the full-vocabulary divergence never holds more than one chunk. (C) Backwards through the blocks, each from
its kept input. Units and chunks add up, since all normalisation lies in the rows' weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from sdpo_mlx.backends.mlx.adapter import Weights, active, assign
from sdpo_mlx.backends.mlx.losses import Rows, RowStatistics, row_loss
from sdpo_mlx.backends.mlx.packing import Unit, pack
from sdpo_mlx.backends.mlx.trunk import Block, Trunk
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.objective import token_scale
from sdpo_mlx.seeding import derive
from sdpo_mlx.types import DistillSample, IntArray

CHUNK_BYTES = 16 * 2**20  # one float32 copy of a chunk's logits; some 15 (top-k) to 25 (full) of it live at once

Hidden = tuple[mx.array, ...]  # a response's hidden states (T, d), one array a set of teacher weights


@dataclass(frozen=True)
class Model:
    """The pieces that a gradient needs: the whole, its parts, and how many ids it speaks."""

    whole: nn.Module
    trunk: Trunk
    vocab_size: int

    @property
    def chunk(self) -> int:
        """Response positions that the head sees at once."""
        return max(16, CHUNK_BYTES // (4 * self.vocab_size))


@dataclass(frozen=True)
class TeacherSet:
    """Weights of the teacher and their share of its logits; a trust region mixes two sets."""

    weights: Weights
    share: float


@dataclass
class Gradient:
    """What one pass over all samples gives: the gradient by name, and figures a sample (numpy).

    `suspects` are the samples of the units whose gradient was not finite.
    """

    loss: float
    grads: Weights
    statistics: list[RowStatistics]
    suspects: tuple[int, ...] = ()


def hidden_states(
    model: Model,
    weights: Weights,
    student: Weights,
    sequences: Sequence[tuple[IntArray, IntArray]],
    budget: int,
    checkpoint: Callable[[], None],
) -> list[mx.array]:
    """The last block's output at the positions that predict each response (T, d), under `weights`.

    `checkpoint` is called between units and may raise to give up; the student is back in the model by then.
    """
    result: list[mx.array] = [mx.zeros(0)] * len(sequences)
    with active(model.whole, weights, student):
        for unit in pack([prompt for prompt, _ in sequences], [response for _, response in sequences], budget):
            checkpoint()
            rows = model.trunk.forward(_ids(unit.prefix_P), mx.array(unit.rows_NT))
            flat = rows.reshape(-1, rows.shape[-1])[mx.array(unit.take_R)]
            parts = mx.split(flat, np.cumsum(unit.counts)[:-1].tolist())
            mx.eval(parts)
            for member, part in zip(unit.members, parts, strict=True):
                result[member] = part
    return result


@dataclass(frozen=True)
class Lesson:
    """What one step learns from: samples, their teacher's hidden states (None: not distilled), the objective."""

    samples: Sequence[DistillSample]
    teacher: Sequence[Hidden | None]
    teacher_sets: Sequence[TeacherSet]
    objective: ObjectiveConfig
    temperature: float
    seed: int


def gradient(model: Model, student: Weights, lesson: Lesson, budget: int, checkpoint: Callable[[], None]) -> Gradient:
    """Loss, gradient and per-token figures over all samples, whatever the token budget of one pass.

    `checkpoint` is called between units and may raise to give up; nothing has been changed by then.
    """
    step, samples = _Step(model, student, lesson), lesson.samples
    statistics: list[RowStatistics | None] = [None] * len(samples)
    total, grads = 0.0, {name: mx.zeros_like(array) for name, array in student.items()}
    suspects: list[int] = []
    units = pack([s.student_ids[: s.student_span[0]] for s in samples], [s.ids_T for s in samples], budget)
    try:
        for number, unit in enumerate(units):
            checkpoint()
            loss, part, figures = step.unit(unit, number)
            total += loss
            grads.update({name: grads[name] + array for name, array in part.items()})
            finite = mx.all(mx.stack([mx.all(mx.isfinite(array)) for array in part.values()]))
            mx.eval(grads, finite)
            if not finite.item():
                suspects.extend(unit.members)
            for member, figure in zip(unit.members, figures, strict=True):
                statistics[member] = figure
    finally:
        assign(model.whole, student)
    return Gradient(total, grads, [figure for figure in statistics if figure is not None], tuple(suspects))


@dataclass(frozen=True)
class _Step:
    model: Model
    student: Weights
    lesson: Lesson

    def unit(self, unit: Unit, number: int) -> tuple[float, Weights, list[RowStatistics]]:
        """Phases A, B and C for one unit."""
        inputs, rows = self._forward(unit, number)
        flat = rows.reshape(-1, rows.shape[-1])
        loss, cotangent_RD, head_grads, figures = self._head(flat[mx.array(unit.take_R)], unit)
        cotangent = mx.zeros_like(flat).at[mx.array(unit.take_R)].add(cotangent_RD).reshape(rows.shape)
        grads = self._backward(unit, number, inputs, cotangent)
        for name, array in head_grads.items():
            grads[name] = grads[name] + array if name in grads else array
        return loss, grads, figures

    def _forward(self, unit: Unit, number: int) -> tuple[list[tuple[mx.array | None, mx.array]], mx.array]:
        """Phase A: the input of each block that phase C visits, and the last block's output at the rows."""
        trunk, inputs = self.model.trunk, []
        prefix = None if unit.prefix_P is None else trunk.embed(mx.array(unit.prefix_P)[None])
        rows = trunk.embed(mx.array(unit.rows_NT))
        lowest = _lowest_trained(trunk, self.student)
        for index, block in enumerate(trunk.blocks):
            if index >= lowest:
                inputs.append((prefix, rows))
            with _dropout(self.model.whole, derive(self.lesson.seed, number, index)):
                prefix, rows = block(prefix, rows)
                mx.eval(rows) if prefix is None else mx.eval(prefix, rows)
        return inputs, rows

    def _head(self, hidden_RD: mx.array, unit: Unit) -> tuple[float, mx.array, Weights, list[RowStatistics]]:
        """Phase B: loss and its gradient with respect to the hidden states, chunk by chunk."""
        rows, teacher = self._rows(unit, hidden_RD), self._teacher_rows(unit, hidden_RD)
        names = _outside_blocks(self.model.trunk, self.student)
        total, cotangents, grads, figures = 0.0, [], {name: mx.zeros_like(self.student[name]) for name in names}, []
        for part in chunks(hidden_RD.shape[0], self.model.chunk):
            targets = None if teacher is None else self._teacher_logits([h[part] for h in teacher], names)
            loss, figure, (cotangent, *extra) = self._chunk(hidden_RD[part], targets, _part(rows, part), names)
            mx.eval(loss, figure, cotangent, extra)
            total += float(loss.item())
            cotangents.append(cotangent)
            figures.append([np.asarray(array) for array in figure])
            grads = {name: grads[name] + array for name, array in zip(names, extra, strict=True)}
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
        names, gaps = _outside_blocks(self.model.trunk, self.student), []
        for part in chunks(hidden_RD.shape[0], self.model.chunk):
            targets = self._teacher_logits([h[part] for h in teacher], names)
            logits = self.model.trunk.head(hidden_RD[part])
            _, figure = row_loss(logits, targets, _part(rows, part), self.lesson.objective, self.lesson.temperature)
            gaps.append(np.asarray(figure.log_p_R - figure.log_q_R))
        return [float(gap.mean()) for gap in np.split(np.concatenate(gaps), np.cumsum(unit.counts)[:-1])]

    def _backward(
        self, unit: Unit, number: int, inputs: list[tuple[mx.array | None, mx.array]], cotangent: mx.array
    ) -> Weights:
        """Phase C: from the last block to the first trained one, each from its kept input, dropped then."""
        trunk, grads = self.model.trunk, Weights()
        above: mx.array | None = None if inputs[-1][0] is None else mx.zeros_like(inputs[-1][0])
        for index in reversed(range(_lowest_trained(trunk, self.student), len(trunk.blocks))):
            prefix, rows = inputs.pop()
            with _dropout(self.model.whole, derive(self.lesson.seed, number, index)):
                found, above, cotangent = _block_vjp(
                    trunk.blocks[index], self.student, (prefix, rows), above, cotangent
                )
                grads.update(found)
                mx.eval(found, cotangent) if above is None else mx.eval(found, above, cotangent)
        grads.update(self._embedding_vjp(unit, above, cotangent))
        return grads

    def _embedding_vjp(self, unit: Unit, above: mx.array | None, cotangent: mx.array) -> Weights:
        names = _outside_blocks(self.model.trunk, self.student)
        if not names:
            return {}

        def embed(*weights: mx.array) -> list[mx.array]:
            assign(self.model.whole, dict(zip(names, weights, strict=True)))
            rows = self.model.trunk.embed(mx.array(unit.rows_NT))
            return [rows] if unit.prefix_P is None else [rows, self.model.trunk.embed(mx.array(unit.prefix_P)[None])]

        own = [self.student[name] for name in names]
        _, found = mx.vjp(embed, own, [cotangent] if above is None else [cotangent, above])
        mx.eval(found)
        assign(self.model.whole, dict(zip(names, own, strict=True)))
        return dict(zip(names, found, strict=True))


def _block_vjp(
    block: Block,
    student: Weights,
    inputs: tuple[mx.array | None, mx.array],
    above: mx.array | None,
    cotangent: mx.array,
) -> tuple[Weights, mx.array | None, mx.array]:
    """Gradients of one block: its weights by name, its prefix, its rows."""
    names = [name for name in student if name.startswith(block.path)]
    own = [student[name] for name in names]
    prefix, rows = inputs

    def run(*arrays: mx.array) -> list[mx.array]:
        weights, entering = arrays[: len(names)], arrays[len(names) :]
        block.layer.update(tree_unflatten([(n[len(block.path) :], w) for n, w in zip(names, weights, strict=True)]))
        out_prefix, out_rows = block(None if prefix is None else entering[1], entering[0])
        return [out_rows] if out_prefix is None else [out_rows, out_prefix]

    entering = [rows] if prefix is None else [rows, prefix]
    _, found = mx.vjp(run, [*own, *entering], [cotangent] if above is None else [cotangent, above])
    block.layer.update(tree_unflatten([(n[len(block.path) :], w) for n, w in zip(names, own, strict=True)]))
    rest = found[len(names) :]
    return dict(zip(names, found, strict=False)), (None if prefix is None else rest[1]), rest[0]


class _dropout:  # noqa: N801  reads as a statement
    """Inside, the adapter's dropout is on, with the same mask forwards and backwards."""

    def __init__(self, whole: nn.Module, seed: int) -> None:
        self.whole, self.seed = whole, seed

    def __enter__(self) -> None:
        self.whole.train()
        mx.random.seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        self.whole.eval()


def _lowest_trained(trunk: Trunk, student: Weights) -> int:
    """The first block that the gradient has to reach; the embedding lies below all of them."""
    if _outside_blocks(trunk, student):
        return 0
    return next(i for i, block in enumerate(trunk.blocks) if any(name.startswith(block.path) for name in student))


def _outside_blocks(trunk: Trunk, student: Weights) -> list[str]:
    """Trained weights of embedding, last norm and head: none with a LoRA inside the blocks."""
    paths = tuple(block.path for block in trunk.blocks)
    return [name for name in student if not name.startswith(paths)]


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `rows`."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _part(rows: Rows, part: slice) -> Rows:
    return Rows(**{name: array[part] for name, array in vars(rows).items()})


def _ids(ids: IntArray | None) -> mx.array | None:
    return None if ids is None else mx.array(ids)
