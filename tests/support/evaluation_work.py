"""The work of one evaluation, read from MLX's graph: every product that is not computed yet, those of gradients too.

`mx.export_function` with a callback walks the graph of arrays that are there already, with shapes and types. It changes
that graph and cuts arrays of a gradient from it, so a forked process reads it, which has no thread to evaluate with. It
joins equal operations, and ends at functions of `mx.compile`, `mx.checkpoint` and `mx.custom_function`, which
`readable` replaces.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import mlx.core as mx
import pytest

from sdpo_mlx.backends.mlx import gated_delta

PRODUCTS = ("Matmul", "AddMM", "GatherMM", "QuantizedMatmul", "GatherQMM", "QQMatmul")
# Weights that are read from a file only now, and the gradient of sorted experts' weights: there the reading ends.
UNREAD = ("primitive Load", "primitive SegmentedMM")


def operations_of(arrays: Sequence[mx.array]) -> float:
    """Return the operations of products, two per multiplication, that evaluating these arrays takes."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)  # names alone, and changes nothing
    if not any(name in graph.getvalue() for name in ("MM", "Matmul", "Convolution")):
        return 0.0
    result, answer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: other threads exist
        child = os.fork()
    if not child:
        try:
            os.write(answer, repr(_read(arrays)).encode())
        finally:
            os._exit(0)
    os.close(answer)
    with os.fdopen(result) as file:
        found = file.read()
    os.waitpid(child, 0)
    return float(found)


def _read(arrays: Sequence[mx.array]) -> float:
    nodes = list[Mapping[str, Any]]()
    try:
        mx.export_function(nodes.append, lambda: list(arrays))
    except ValueError as error:
        if not any(name in str(error) for name in UNREAD):
            raise
    return sum(_operations(node) for node in nodes if node["type"] == "primitive")


def _operations(node: Mapping[str, Any]) -> float:
    shapes = [shape for _, shape, _ in node["inputs"]]
    out = node["outputs"][0][1]
    if node["name"] in PRODUCTS:
        return 2.0 * prod(out) * shapes[0][-1]
    if node["name"] == "Convolution":
        return 2.0 * prod(out) * prod(shapes[1][1:])
    return 0.0


@contextmanager
def readable() -> Iterator[Recomputed]:
    """Inside, graphs can be read: functions of `mx.compile`, `mx.checkpoint` and our recurrence are plain ones.

    `mx.contiguous` copies nothing. Plain functions do not run again on the way back; what is yielded knows whether they
    should have.
    """
    recomputed = Recomputed()
    mx.disable_compile()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mx, "checkpoint", recomputed.noted)
            patch.setattr(mx, "contiguous", lambda array, *_, **__: array)
            patch.setattr(gated_delta, "_recurrence", recomputed.noted(gated_delta._all_chunks))
            patch.setattr(gated_delta, "_solve_with_inverse", gated_delta._inverted)
            yield recomputed
    finally:
        mx.enable_compile()


class Recomputed:
    """Whether a part of the graph since the last evaluation runs again on the way back."""

    def __init__(self) -> None:
        self.some = False

    def noted(self, function: Any) -> Any:
        """Return the function, whose calls are noted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.some = True
            return function(*args, **kwargs)

        return call

    def share(self) -> float:
        """Return by how much reading the graph underestimates it at most: 8 operations per weight in place of 6."""
        some, self.some = self.some, False
        return 8 / 6 if some else 1.0
