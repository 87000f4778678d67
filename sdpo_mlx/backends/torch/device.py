"""The device that torch runs on, and its memory in bytes: the GPU's own counters, or the process's on a CPU."""

from __future__ import annotations

import os
import resource
import sys

import torch

from sdpo_mlx.backends.torch.loading import device_of


def device_line() -> str:
    """Return the device that `--backend torch` would use, with the name of its GPU, for `sdpo doctor`."""
    device = device_of("auto")
    card = f" ({torch.cuda.get_device_name()})" if device.type == "cuda" else ""
    return f"torch {torch.__version__} on {device.type}{card}"


def memory_figures(device: torch.device) -> dict[str, int]:
    """Return `current`, `peak` and `limit` (0: unknown); reading restarts the peak on CUDA alone."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        total = torch.cuda.get_device_properties(device).total_memory
        return {"current": torch.cuda.memory_allocated(device), "peak": peak, "limit": total}
    if device.type == "mps":
        now = torch.mps.current_allocated_memory()
        return {"current": now, "peak": now, "limit": torch.mps.recommended_max_memory()}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"current": peak, "peak": peak, "limit": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
