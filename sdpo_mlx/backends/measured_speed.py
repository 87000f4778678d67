"""The speed of this machine as `sdpo doctor --self-test` measured it, on random models with layers of several sizes.

Between the sizes measured, the time of a layer is a straight line over its width, the root of its weights: what a layer
takes whatever its size and per number of a token (starting kernels, norms, softmax) weighs less in a wider one. Below
the smallest it stays, above the largest it grows in proportion to the weights. So a model is not judged by the speed
of one whose layers are a hundred times smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import accumulate
from typing import Any

import numpy as np

from sdpo_mlx.backends.step_time import head
from sdpo_mlx.core.machine_cache import read_cached, write_cached
from sdpo_mlx.models.dimensions import ModelDims

KIND = "speed"  # folder of the cache
FORMAT = 1


@dataclass(frozen=True)
class LayerSpeed:
    """FLOP/s of a model whose layers have so many weights each; of decoding by the number of rows."""

    weights: float
    prefill: float
    teacher: float
    learn: float
    decode: Mapping[int, float]

    def seconds(self, phase: str) -> float:
        """Return the time of a layer for each operation per weight, outside decoding."""
        return float(self.weights / getattr(self, phase))

    def token_seconds(self, rows: int) -> float:
        """Return the time of a layer for one token of each row: the next number measured, never less than fewer."""
        counts = sorted(self.decode)
        known = list(accumulate((2 * self.weights * each / self.decode[each] for each in counts), max))
        return float(np.interp(rows, counts, known)) * max(1.0, rows / counts[-1])


@dataclass(frozen=True)
class MeasuredSpeed:
    """Speeds on models without and with quantized weights, from small to large layers (see `step_time.Speed`).

    `width` are the bytes of a number in those without, `sampling` the entries of the vocabulary per second and row.
    """

    date: str
    width: int
    plain: tuple[LayerSpeed, ...]
    quantized: tuple[LayerSpeed, ...]
    sampling: float

    def prefill(self, shape: ModelDims, operations: float) -> float:
        """See `Speed.prefill`."""
        return self._pass(shape, operations, "prefill")

    def teacher(self, shape: ModelDims, operations: float) -> float:
        """See `Speed.teacher`."""
        return self._pass(shape, operations, "teacher")

    def learn(self, shape: ModelDims, operations: float) -> float:
        """See `Speed.learn`."""
        return self._pass(shape, operations, "learn")

    def token(self, shape: ModelDims, rows: int, cache: float, width: int) -> float:
        """See `Speed.token`: the layers, the head, keys and values at the rate of one row's weights, and sampling.

        Several rows of a mixture of experts read up to all experts.
        """
        layers, used = self._layers(shape), shape.active_parameters / shape.layers
        touched = min(shape.trunk_parameters, rows * shape.active_parameters) / shape.layers

        def layer(weights: float, count: int) -> float:
            return _between(weights, [(each.weights, each.token_seconds(count)) for each in layers])

        largest = self.plain[-1]
        blocks = shape.layers * max(layer(used, rows), layer(touched, 1))
        read = cache * largest.token_seconds(1) / (largest.weights * self.width)
        products = (blocks + layer(head(shape), rows)) * self._wider(shape, width)
        return products + read + rows * shape.vocabulary / self.sampling

    def _pass(self, shape: ModelDims, operations: float, phase: str) -> float:
        weights = shape.active_parameters / shape.layers
        return operations / weights * _between(weights, [(e.weights, e.seconds(phase)) for e in self._layers(shape)])

    def _layers(self, shape: ModelDims) -> tuple[LayerSpeed, ...]:
        return self.quantized if shape.bits else self.plain

    def _wider(self, shape: ModelDims, width: int) -> float:
        """How much longer numbers that are wider than those measured take."""
        return 1.0 if shape.bits else max(1.0, width / self.width)


def _between(weights: float, known: Sequence[tuple[float, float]]) -> float:
    """Return the time of a layer of so many weights: never less than that of a smaller one."""
    widths, seconds = [math.sqrt(size) for size, _ in known], list(accumulate((time for _, time in known), max))
    return float(np.interp(math.sqrt(weights), widths, seconds)) * max(1.0, weights / known[-1][0])


def keep(found: MeasuredSpeed, depends_on: Sequence[str]) -> None:
    """Keep the speeds for exactly these texts: the machine, its device and versions."""
    write_cached(KIND, depends_on, {"format": FORMAT, **asdict(found)})


def kept(depends_on: Sequence[str]) -> MeasuredSpeed | None:
    """Return the speeds kept for exactly these texts; None if there are none, or not such as this version writes."""
    found = read_cached(KIND, depends_on)
    try:
        if found["format"] != FORMAT:
            return None
        plain, quantized = ([_layer_speed(each) for each in found[name]] for name in ("plain", "quantized"))
        day = date.fromisoformat(found["date"]).isoformat()
        speed = MeasuredSpeed(day, int(found["width"]), tuple(plain), tuple(quantized), _positive(found["sampling"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return speed if plain and quantized and speed.width > 0 else None


def _layer_speed(found: Mapping[str, Any]) -> LayerSpeed:
    decode = {int(rows): _positive(rate) for rows, rate in found["decode"].items()}
    rates = {name: _positive(found[name]) for name in ("weights", "prefill", "teacher", "learn")}
    if min(decode) < 1:
        raise ValueError(f"{min(decode)} rows")
    return LayerSpeed(decode=decode, **rates)


def _positive(number: Any) -> float:
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{number} is no rate")
    return float(number)
