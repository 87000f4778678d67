"""How fast this machine multiplies, for `sdpo doctor`."""

from __future__ import annotations

import time
from importlib.metadata import version

import mlx.core as mx

from sdpo_mlx.backends.mlx import BLAS

SIDE = 1_024


def device_line() -> str:
    """The device that training would use, and the BLAS behind it."""
    device = str(mx.default_device().type).rpartition(".")[2]
    return f"mlx {version('mlx')} on {device}, BLAS {BLAS}"


def gigaflops(seconds: float = 0.3) -> float:
    """Measured GFLOP/s of a float32 matrix product of 1,024 square."""
    a = mx.random.normal((SIDE, SIDE), key=mx.random.key(0))
    mx.eval(a @ a)
    rounds, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds or not rounds:
        mx.eval(a @ a)
        rounds += 1
    return 2 * SIDE**3 * rounds / spent / 1e9
