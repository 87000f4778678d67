"""Phases A and C of learning: through the blocks and back, one block in memory at a time.

Going forward keeps each block's input; going back takes `mx.vjp` of one block from its kept input, evaluates,
drops it, and continues with the one below. The gradients are those of the whole graph, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx

from sdpo_mlx.backends.mlx.adapter import Weights, assign, dropout
from sdpo_mlx.backends.mlx.differentiable import differentiable_attention
from sdpo_mlx.backends.mlx.model import Model, Nodes, SplitModel
from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.core.seeding import derive

Inputs = list[Nodes]  # what enters each block


def forward(model: Model, trunk: SplitModel, student: Weights, unit: Unit, seed: int) -> tuple[Inputs, Nodes]:
    """Phase A: the input of each block that phase C visits, and the last block's output."""
    inputs, nodes, lowest = Inputs(), trunk.enter(unit), _lowest_trained(model, student)
    for index, block in enumerate(trunk.blocks):
        if index >= lowest:
            inputs.append(nodes)
        with dropout(model.whole, derive(seed, index)):
            nodes = block(nodes, unit)
            mx.eval(nodes)
    return inputs, nodes


def backward(
    model: Model, trunk: SplitModel, student: Weights, unit: Unit, seed: int, inputs: Inputs, cotangents: Nodes
) -> Weights:
    """Phase C: gradients by name from the last block's cotangents; `inputs` is emptied on the way."""
    grads = Weights()
    for index in reversed(range(_lowest_trained(model, student), len(trunk.blocks))):
        block = trunk.blocks[index]
        own = {name: array for name, array in student.items() if name.startswith(block.path)}
        with dropout(model.whole, derive(seed, index)):
            found, cotangents = _vjp(model, own, partial(block, unit=unit), inputs.pop(), cotangents)
        grads.update(found)
    if outside := {name: student[name] for name in model.outside_layers(student)}:
        grads.update(_vjp(model, outside, lambda _: trunk.enter(unit), [], cotangents)[0])
    return grads


def _vjp(
    model: Model, weights: Weights, run: Callable[[Nodes], Nodes], entering: Nodes, cotangents: Nodes
) -> tuple[Weights, Nodes]:
    """Gradients of a part of the model: its weights by name, and the nodes that enter it."""
    names = list(weights)

    def part(*arrays: mx.array) -> Nodes:
        assign(model.whole, dict(zip(names, arrays, strict=False)))
        return run(list(arrays[len(names) :]))

    with differentiable_attention():
        _, found = mx.vjp(part, [*weights.values(), *entering], cotangents)
    mx.eval(found)
    assign(model.whole, weights)
    return dict(zip(names, found, strict=False)), found[len(names) :]


def _lowest_trained(model: Model, student: Weights) -> int:
    """The first block that the gradient has to reach; the embedding lies below all of them."""
    if model.outside_layers(student):
        return 0
    return next(i for i, path in enumerate(model.trunk.paths) if any(name.startswith(path) for name in student))
