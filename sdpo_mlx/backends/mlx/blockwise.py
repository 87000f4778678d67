"""Phases A and C of learning: through the blocks and back, one block in memory at a time.

Going forward keeps each block's input; going back takes `mx.vjp` of one block from its kept input, evaluates,
drops it, and continues with the one below. The gradients are those of the whole graph, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from sdpo_mlx.backends.mlx.adapter import Weights, assign
from sdpo_mlx.backends.mlx.model import Model, Nodes, SplitModel
from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.core.seeding import derive

Inputs = list[Nodes]  # what enters each block


def forward(model: Model, student: Weights, unit: Unit, seed: int) -> tuple[Inputs, Nodes]:
    """Phase A: the input of each block that phase C visits, and the last block's output."""
    trunk, inputs = model.trunk, Inputs()
    nodes, lowest = trunk.enter(unit), _lowest_trained(trunk, student)
    for index, block in enumerate(trunk.blocks):
        if index >= lowest:
            inputs.append(nodes)
        with dropout(model.whole, derive(seed, index)):
            nodes = block(nodes, unit)
            mx.eval(nodes)
    return inputs, nodes


def backward(model: Model, student: Weights, unit: Unit, seed: int, inputs: Inputs, cotangents: Nodes) -> Weights:
    """Phase C: gradients by name from the last block's cotangents; `inputs` is emptied on the way."""
    trunk, grads = model.trunk, Weights()
    for index in reversed(range(_lowest_trained(trunk, student), len(trunk.blocks))):
        block = trunk.blocks[index]
        own = {name: array for name, array in student.items() if name.startswith(block.path)}
        with dropout(model.whole, derive(seed, index)):
            found, cotangents = _vjp(model, own, partial(block, unit=unit), inputs.pop(), cotangents)
        grads.update(found)
    if outside := {name: student[name] for name in outside_blocks(trunk, student)}:
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

    _, found = mx.vjp(part, [*weights.values(), *entering], cotangents)
    mx.eval(found)
    assign(model.whole, weights)
    return dict(zip(names, found, strict=False)), found[len(names) :]


def outside_blocks(trunk: SplitModel, student: Weights) -> list[str]:
    """Trained weights of embedding, last norm and head: none with a LoRA inside the blocks."""
    paths = tuple(block.path for block in trunk.blocks)
    return [name for name in student if not name.startswith(paths)]


def _lowest_trained(trunk: SplitModel, student: Weights) -> int:
    """The first block that the gradient has to reach; the embedding lies below all of them."""
    if outside_blocks(trunk, student):
        return 0
    return next(i for i, block in enumerate(trunk.blocks) if any(name.startswith(block.path) for name in student))


class dropout:  # noqa: N801  reads as a statement
    """Inside, the adapter's dropout is on, with the same mask forwards and backwards."""

    def __init__(self, whole: nn.Module, seed: int) -> None:
        self.whole, self.seed = whole, seed

    def __enter__(self) -> None:
        self.whole.train()
        mx.random.seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        self.whole.eval()
