"""Phases A and C of learning: through the blocks and back, one block in memory at a time.

Going forward keeps each block's input; going back takes `mx.vjp` of one block from its kept input, evaluates,
drops it, and goes on to the one below. The gradients are those of the whole graph, bit for bit.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from sdpo_mlx.backends.mlx.adapter import Weights, assign
from sdpo_mlx.backends.mlx.trunk import Block, Model, Trunk
from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.seeding import derive

Inputs = list[tuple[mx.array | None, mx.array]]  # prefix (1, P, d) or none, and rows (N, T, d), a block


def forward(model: Model, student: Weights, unit: Unit, seed: int) -> tuple[Inputs, mx.array]:
    """Phase A: the input of each block that phase C visits, and the last block's output at the rows."""
    trunk, inputs = model.trunk, Inputs()
    prefix = None if unit.prefix_P is None else trunk.embed(mx.array(unit.prefix_P)[None])
    rows = trunk.embed(mx.array(unit.rows_NT))
    lowest = _lowest_trained(trunk, student)
    for index, block in enumerate(trunk.blocks):
        if index >= lowest:
            inputs.append((prefix, rows))
        with _dropout(model.whole, derive(seed, index)):
            prefix, rows = block(prefix, rows)
            mx.eval(rows) if prefix is None else mx.eval(prefix, rows)
    return inputs, rows


def backward(model: Model, student: Weights, unit: Unit, seed: int, inputs: Inputs, cotangent: mx.array) -> Weights:
    """Phase C: gradients by name from the rows' cotangent (N, T, d); `inputs` is emptied on the way."""
    trunk, grads = model.trunk, Weights()
    above: mx.array | None = None if inputs[-1][0] is None else mx.zeros_like(inputs[-1][0])
    for index in reversed(range(_lowest_trained(trunk, student), len(trunk.blocks))):
        entering = inputs.pop()
        with _dropout(model.whole, derive(seed, index)):
            found, above, cotangent = _block_vjp(trunk.blocks[index], student, entering, above, cotangent)
            grads.update(found)
            mx.eval(found, cotangent) if above is None else mx.eval(found, above, cotangent)
    grads.update(_embedding_vjp(model, student, unit, above, cotangent))
    return grads


def outside_blocks(trunk: Trunk, student: Weights) -> list[str]:
    """Trained weights of embedding, last norm and head: none with a LoRA inside the blocks."""
    paths = tuple(block.path for block in trunk.blocks)
    return [name for name in student if not name.startswith(paths)]


def _lowest_trained(trunk: Trunk, student: Weights) -> int:
    """The first block that the gradient has to reach; the embedding lies below all of them."""
    if outside_blocks(trunk, student):
        return 0
    return next(i for i, block in enumerate(trunk.blocks) if any(name.startswith(block.path) for name in student))


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


def _embedding_vjp(model: Model, student: Weights, unit: Unit, above: mx.array | None, cotangent: mx.array) -> Weights:
    names = outside_blocks(model.trunk, student)
    if not names:
        return {}

    def embed(*weights: mx.array) -> list[mx.array]:
        assign(model.whole, dict(zip(names, weights, strict=True)))
        rows = model.trunk.embed(mx.array(unit.rows_NT))
        return [rows] if unit.prefix_P is None else [rows, model.trunk.embed(mx.array(unit.prefix_P)[None])]

    own = [student[name] for name in names]
    _, found = mx.vjp(embed, own, [cotangent] if above is None else [cotangent, above])
    mx.eval(found)
    assign(model.whole, dict(zip(names, own, strict=True)))
    return dict(zip(names, found, strict=True))


class _dropout:  # noqa: N801  reads as a statement
    """Inside, the adapter's dropout is on, with the same mask forwards and backwards."""

    def __init__(self, whole: nn.Module, seed: int) -> None:
        self.whole, self.seed = whole, seed

    def __enter__(self) -> None:
        self.whole.train()
        mx.random.seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        self.whole.eval()
