"""The gradient of one step in three phases, so that neither a batch's logits nor a trunk's activations exist.

(A) The trunk runs block after block; each block's input is kept. (B) Head, loss and the gradient with respect
to the hidden states, a chunk of response positions at a time; the teacher is there as hidden states, so even
the full-vocabulary divergence never holds more than one chunk. (C) Backwards through the blocks, each from
its kept input. Units and chunks add up, since all normalisation lies in the rows' weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from sdpo_mlx.backends.mlx.adapter import Weights, active, assign
from sdpo_mlx.backends.mlx.blockwise import backward, dropout, forward
from sdpo_mlx.backends.mlx.loss_head import Head, LearnBatch, cut
from sdpo_mlx.backends.mlx.losses import RowStatistics
from sdpo_mlx.backends.mlx.model import Model, read
from sdpo_mlx.backends.packing import Unit, pack
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.types import IntArray


@dataclass
class Gradient:
    """What one pass over all samples gives: the gradient by name, and figures a sample (numpy).

    `suspects` are the samples of the units whose gradient was not finite.
    """

    loss: float
    grads: Weights
    statistics: list[RowStatistics]
    suspects: tuple[int, ...] = ()


def gradient(
    model: Model,
    student: Weights,
    lesson: LearnBatch,
    budget: int,
    checkpoint: Callable[[], None],
    *,
    keep: bool = False,
) -> Gradient:
    """Loss, gradient and per-token figures over all samples, whatever the token budget of one pass.

    With `keep` a unit's activations stay in memory, so that no block runs twice. `checkpoint` is called between units
    and may raise to give up; nothing has been changed by then.
    """
    head, samples = Head(model, student, lesson), lesson.samples
    statistics: list[RowStatistics | None] = [None] * len(samples)
    total, grads = 0.0, {name: mx.zeros_like(array) for name, array in student.items()}
    suspects: list[int] = []
    prompts, responses = [s.student_ids[: s.student_span[0]] for s in samples], [s.ids_T for s in samples]
    units = pack(prompts, responses, budget, lesson.own, share=model.shares)
    try:
        for number, unit in enumerate(units):
            checkpoint()
            loss, part, figures = (_kept if keep else _by_block)(head, unit, derive(lesson.seed, number))
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


def _by_block(head: Head, unit: Unit, seed: int) -> tuple[float, Weights, list[RowStatistics]]:
    """Phases A, B and C for one unit: loss, gradients by name, figures a member."""
    inputs, nodes = forward(head.model, head.student, unit, seed)
    loss, cotangent_RD, head_grads, figures = head.run(read(nodes, unit), unit)
    _, cotangents = mx.vjp(lambda *each: [read(each, unit)], nodes, [cotangent_RD])
    grads = backward(head.model, head.student, unit, seed, inputs, cotangents)
    return loss, _with(grads, head_grads), figures


def _kept(head: Head, unit: Unit, seed: int) -> tuple[float, Weights, list[RowStatistics]]:
    """The same in one graph, which the head interrupts: faster by a trunk's forward, larger by all activations."""
    model, found = head.model, list[Any]()

    def trunk(weights: Weights) -> mx.array:
        assign(model.whole, weights)
        nodes = model.trunk.enter(unit)
        for index, block in enumerate(model.trunk.blocks):
            with dropout(model.whole, derive(seed, index)):
                nodes = block(nodes, unit)
        states_RD = read(nodes, unit)
        found.extend(head.run(cut(states_RD), unit))
        return mx.sum(states_RD * mx.stop_gradient(found[1]))

    grads = mx.grad(trunk)(head.student)
    mx.eval(grads)
    assign(model.whole, head.student)
    loss, _, head_grads, figures = found
    return loss, _with(grads, head_grads), figures


def _with(grads: Weights, more: Weights) -> Weights:
    return {**grads, **{name: grads[name] + array if name in grads else array for name, array in more.items()}}


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
        prompts, responses = [prompt for prompt, _ in sequences], [response for _, response in sequences]
        for unit in pack(prompts, responses, budget, share=model.shares):
            checkpoint()
            parts = mx.split(model.trunk.forward(unit), np.cumsum(unit.counts)[:-1].tolist())
            mx.eval(parts)
            for member, part in zip(unit.members, parts, strict=True):
                result[member] = part
    return result
