"""The device that MLX runs on: its name, its speed, and peak memory by phase of a step."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

import mlx.core as mx

from sdpo_mlx.backends.mlx import BLAS

SIDE = 1_024


def device_line() -> str:
    """Return the device that training would use, and its BLAS."""
    device = str(mx.default_device().type).rpartition(".")[2]
    return f"mlx {version('mlx')} on {device}, BLAS {BLAS}"


def machine() -> list[str]:
    """Return what a measurement on this device depends on besides the model: device, system, versions."""
    chip = str(mx.device_info().get("device_name", ""))
    return [str(mx.default_device()), chip, platform.platform(), *map(version, ("mlx", "mlx-lm", "sdpo-mlx"))]


def has_metal() -> bool:
    """Return whether MLX finds an Apple GPU."""
    return bool(mx.metal.is_available())


def device_facts() -> Mapping[str, str | int]:
    """Return MLX's device properties: name and architecture; on Metal also memory sizes in bytes."""
    return mx.device_info()


def block_gigaflops(seconds: float = 0.7) -> float:
    """Measure the GFLOP/s of a transformer block's forward pass, counting its matrix products alone (float32)."""
    width, inner, heads, length = 512, 1_536, 8, 256
    shapes = [(width, width)] * 4 + [(width, inner)] * 2 + [(inner, width)]
    weights = [mx.random.normal(shape, key=mx.random.key(i)) * 0.02 for i, shape in enumerate(shapes)]
    hidden = mx.random.normal((1, length, width), key=mx.random.key(9))

    def block(x: mx.array) -> mx.array:
        normal = mx.fast.rms_norm(x, None, 1e-6)
        q, k, v = ((normal @ w).reshape(1, length, heads, -1).transpose(0, 2, 1, 3) for w in weights[:3])
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.1, mask="causal")
        x = x + mixed.transpose(0, 2, 1, 3).reshape(1, length, width) @ weights[3]
        gate, up = (x @ w for w in weights[4:6])
        return x + (gate * mx.sigmoid(gate) * up) @ weights[6]

    products = 2 * length * sum(a * b for a, b in shapes)
    return products * _rate(lambda: block(hidden), seconds) / 1e9


def gigabytes(seconds: float = 0.5) -> float:
    """Measure the GB/s at which decoding reads weights: eight rows times a matrix larger than any cache."""
    matrix = mx.random.normal((4_096, 8_192), key=mx.random.key(0))
    rows = mx.random.normal((8, 4_096), key=mx.random.key(1))
    return matrix.nbytes * _rate(lambda: rows @ matrix, seconds) / 1e9


def _rate(work: Callable[[], mx.array], seconds: float) -> float:
    """How often `work` runs per second."""
    mx.eval(work())
    rounds, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds or not rounds:
        mx.eval(work())
        rounds += 1
    return rounds / spent


def gigaflops(seconds: float = 0.3, gpu: bool = False) -> float:
    """Measure the GFLOP/s of a float32 product of 1,024 square matrices: the best of three, `seconds` in all."""
    where = mx.gpu if gpu else mx.cpu
    a = mx.random.normal((SIDE, SIDE), key=mx.random.key(0))
    mx.eval(a)
    return 2 * SIDE**3 * max(_rate(lambda: mx.matmul(a, a, stream=where), seconds / 3) for _ in range(3)) / 1e9


class PeakTracker:
    """Peaks by phase in bytes since the last `read`; a phase begins with an empty buffer cache."""

    def __init__(self) -> None:
        self.phase, self.seen = "load", dict[str, int]()

    def begin(self, phase: str) -> None:
        """Count memory for `phase` from here on."""
        self._note()
        mx.clear_cache()
        self.phase = phase

    def read(self) -> dict[str, int]:
        """Return the peak of each phase and reset them."""
        self._note()
        seen, self.seen = self.seen, {}
        return seen

    def _note(self) -> None:
        self.seen[self.phase] = max(self.seen.get(self.phase, 0), mx.get_peak_memory())
        mx.reset_peak_memory()


def chip_name() -> str:
    """Return the name of the GPU that MLX computes on, as `Apple M4 Pro`; blank on a CPU."""
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    return str(mx.device_info().get("device_name", "")) if on_gpu else ""
