"""Memory limits of MLX on a GPU: the only place that sets the wired, memory and cache limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from sdpo_mlx.config import MemoryConfig
from sdpo_mlx.core.hardware import amount_of

WIRING = "maybe_set_recommended_wired_limit"  # mlx-lm's name for it, in each of its modules that call it


def limit_bytes(cfg: MemoryConfig) -> dict[str, int]:
    """Return what `device_limits` sets, in bytes by name: `memory`, `cache`, and `wired` if it is not off.

    Empty without a GPU or if MLX reports no size of its working set (on CUDA): then MLX's own limits stay.
    """
    recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
    if mx.default_device() != mx.Device(mx.gpu) or not recommended:
        return {}
    limits = {"memory": amount_of(cfg.limit, recommended), "cache": amount_of(cfg.cache_limit, recommended)}
    return limits | ({} if cfg.wired == "off" else {"wired": recommended})


class _Limits:
    """Limits that are set once however often they are entered, and restored when the last one leaves.

    Generators may be closed late, in any order: restoring at each exit could leave a limit of ours behind.
    """

    def __init__(self) -> None:
        self.depth, self.before = 0, dict[str, int]()

    def enter(self, cfg: MemoryConfig) -> None:
        self.depth += 1
        if self.depth == 1:
            for name, size in limit_bytes(cfg).items():
                self.before[name] = _setter(name)(size)

    def leave(self) -> None:
        self.depth -= 1
        if self.depth:
            return
        if "wired" in self.before:
            mx.synchronize()  # it must not change during an evaluation
        for name, size in self.before.items():
            _setter(name)(size)
        self.before = {}


def _setter(name: str) -> Any:
    return getattr(mx, f"set_{name}_limit")


_limits = _Limits()  # one for the process, as MLX's limits are


@contextmanager
def device_limits(cfg: MemoryConfig) -> Iterator[None]:
    """Inside, MLX keeps to `cfg`; the limits before are restored on any exit. The outermost block decides."""
    try:
        _limits.enter(cfg)
        yield
    finally:
        _limits.leave()


@contextmanager
def no_wiring(*modules: Any) -> Iterator[None]:
    """Inside, these modules of mlx-lm do not set the wired limit, as `BatchGenerator` and the server would.

    There is no argument for it. A module without the function is left as it is.
    """
    before = [(each, getattr(each, WIRING)) for each in modules if hasattr(each, WIRING)]
    for module, _ in before:
        setattr(module, WIRING, lambda: None)
    try:
        yield
    finally:
        for module, function in before:
            setattr(module, WIRING, function)
