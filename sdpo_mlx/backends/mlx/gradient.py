"""The gradient of one step in three phases, so that neither a batch's logits nor a model's activations are all held.

(A) The model runs block after block; each block's input is kept. (B) Head, loss and the gradient with respect to the
hidden states, a chunk of response positions at a time. (C) Backwards through the blocks, each from its kept input.
With `keep` A and C are one graph, which B interrupts: faster by one forward pass, larger by all activations. A model
that is not taken apart by block runs A by itself, then C as one graph in which each layer runs again on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from sdpo_mlx.backends.loss_head import GradientPass, LearnBatch, Rows, RowStatistics, TeacherSet, Weights, by_member
from sdpo_mlx.backends.mlx.adapter import active, assign
from sdpo_mlx.backends.mlx.blockwise import backward, forward
from sdpo_mlx.backends.mlx.differentiable import differentiable_attention
from sdpo_mlx.backends.mlx.losses import row_loss
from sdpo_mlx.backends.mlx.model import Model, SplitModel, read
from sdpo_mlx.backends.packing import Unit


class MLXGradientPass(GradientPass):
    """See `GradientPass`. The student's weights are in the model between units."""

    def __init__(self, batch: LearnBatch, model: Model, student: Weights, keep: bool) -> None:
        super().__init__(batch, model.chunk, model.shares)
        self.model, self.student, self.keep = model, student, keep
        self.grads = {name: mx.zeros_like(array) for name, array in student.items()}
        self.head_names = model.outside_layers(student)

    def add(self, unit: Unit, seed: int) -> tuple[float, list[RowStatistics], bool]:
        """See `GradientPass.add`."""
        model, found = self.model, list[Any]()
        keep = self.keep and unit.tokens <= model.sizes.one_graph
        if isinstance(model.trunk, SplitModel) and not keep:
            inputs, nodes = forward(model, model.trunk, self.student, unit, seed)
            self._head(read(nodes, unit), unit, found)
            _, cotangents = mx.vjp(lambda *each: [read(each, unit)], nodes, [found[1]])
            grads = backward(model, model.trunk, self.student, unit, seed, inputs, cotangents)
        else:
            if not keep:  # a graph that is evaluated halfway keeps all its activations
                hidden_RD = model.trunk.graph(unit, seed, recompute=False)
                mx.eval(hidden_RD)
                self._head(hidden_RD, unit, found)
            with differentiable_attention():
                grads = mx.grad(partial(self._one_graph, unit=unit, seed=seed, keep=keep, found=found))(self.student)
            mx.eval(grads)
            assign(model.whole, self.student)
        loss, _, head_grads, statistics = found
        for name, array in head_grads.items():
            grads[name] = grads[name] + array if name in grads else array
        self.grads.update({name: self.grads[name] + array for name, array in grads.items()})
        finite = mx.all(mx.stack([mx.all(mx.isfinite(array)) for array in grads.values()]))
        mx.eval(self.grads, finite)
        return loss, statistics, bool(finite.item())

    def teacher_logits(self, hidden: Sequence[mx.array]) -> mx.array:
        """See `GradientPass.teacher_logits`."""
        return mixed_logits(self.model, self.student, hidden, self.batch.teacher_sets)

    def statistics(self, hidden_RD: mx.array, teacher_RV: mx.array, rows: Rows) -> RowStatistics:
        """See `GradientPass.statistics`."""
        objective, temperature = self.batch.objective, self.batch.temperature
        _, figures = row_loss(self.model.trunk.head(hidden_RD), teacher_RV, rows, objective, temperature)
        mx.eval(*figures)
        return figures

    def concatenate(self, arrays: list[mx.array]) -> mx.array:
        """See `GradientPass.concatenate`."""
        return mx.concatenate(arrays)

    def on_device(self, rows: Rows) -> Rows:
        """See `GradientPass.on_device`."""
        return replace(rows, **{name: mx.array(array) for name, array in vars(rows).items()})

    def _one_graph(self, weights: Weights, unit: Unit, seed: int, keep: bool, found: list[Any]) -> mx.array:
        """Phase A on the student's weights, and B unless it is done. Return a scalar whose gradient is the loss's."""
        assign(self.model.whole, weights)
        states_RD = self.model.trunk.graph(unit, seed, recompute=not keep)
        if not found:
            self._head(detached(states_RD), unit, found)
        return mx.sum(states_RD * mx.stop_gradient(found[1]))

    def _head(self, hidden_RD: mx.array, unit: Unit, found: list[Any]) -> None:
        """Phase B: put loss, cotangents (R, d), gradients of a trained head and statistics into `found`."""
        names, own = self.head_names, [self.student[name] for name in self.head_names]
        total, cotangents, figures, grads = 0.0, [], [], {name: mx.zeros_like(self.student[name]) for name in names}
        for part, teacher_RV, rows in self.chunks(unit, hidden_RD):
            loss = partial(self._loss, teacher_RV=teacher_RV, rows=rows)
            (value, figure), both = mx.value_and_grad(loss, argnums=list(range(1 + len(own))))(hidden_RD[part], *own)
            assign(self.model.whole, dict(zip(names, own, strict=True)))
            cotangent, *extra = both if own else [both]  # the gradient of a single argument is not in a list
            mx.eval(value, figure, cotangent, extra)
            total += float(np.array(value))
            cotangents.append(detached(cotangent))
            figures.append(RowStatistics(*map(np.asarray, figure)))
            grads = {name: grads[name] + detached(array) for name, array in zip(names, extra, strict=True)}
        found.extend([total, mx.concatenate(cotangents), grads, by_member(figures, unit)])

    def _loss(
        self, hidden_RD: mx.array, *head: mx.array, teacher_RV: mx.array | None, rows: Rows
    ) -> tuple[mx.array, RowStatistics]:
        assign(self.model.whole, dict(zip(self.head_names, head, strict=True)))
        logits_RV = self.model.trunk.head(hidden_RD)
        return row_loss(logits_RV, teacher_RV, rows, self.batch.objective, self.batch.temperature)


def mixed_logits(model: Model, student: Weights, hidden: Sequence[mx.array], sets: Sequence[TeacherSet]) -> mx.array:
    """Logits (R, V) of hidden states, one array per set, mixed by the sets' shares; float32."""
    names, total = model.outside_layers(student), mx.array(0.0)
    for states, source in zip(hidden, sets, strict=True):
        with active(model.whole, {n: source.weights[n] for n in names}, {n: student[n] for n in names}):
            total = total + source.share * model.trunk.head(states).astype(mx.float32)
    return total


def detached(array: mx.array) -> mx.array:
    """A copy that no graph follows: inside another gradient, MLX keeps all that led to an array alive with it."""
    copied = array.astype(mx.float32)
    mx.eval(copied)
    return mx.array(np.array(copied)).astype(array.dtype)
