"""Memory of torch's device: what is free, and running out of it, recognised under all its names."""

from __future__ import annotations

import gc
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdpo_mlx.core.errors import ConfigError, SdpoError

# Only CUDA's allocator raises torch.OutOfMemoryError. cuBLAS, cuDNN and cuSOLVER (`CUBLAS_STATUS_ALLOC_FAILED`),
# NCCL, Triton, the CUDA driver, Apple's GPU and the CPU's allocator raise a RuntimeError with a text of their own.
_TEXT = re.compile(r"out of memory|_STATUS_ALLOC_FAILED|can(?:no|')t allocate memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or of a library below it says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and not isinstance(error, SdpoError) and bool(_TEXT.search(str(error)))


@contextmanager
def reported(doing: str, fix: str, where: str = "model") -> Iterator[None]:
    """Inside, running out of memory is a ConfigError of one line: what was being done, and the fix."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(f"out of memory {doing}", where=where, fix=fix) from error


def bound_memory(device: torch.device, gigabytes: float | None = None) -> None:
    """Let torch use at most so much of a card, and on Windows and WSL keep 5 % of it free.

    Their driver moves what exceeds the card into the computer's memory, where a step takes many times as long, and no
    error tells (NVIDIA's "CUDA sysmem fallback policy", since driver 536.40).
    """
    spills = sys.platform == "win32" or "microsoft" in platform.release().lower()
    if device.type != "cuda" or not (spills or gigabytes):
        return
    most = 0.95 if spills else 1.0
    if gigabytes:
        most = min(most, gigabytes * 2**30 / torch.cuda.mem_get_info(device)[1])
    torch.cuda.set_per_process_memory_fraction(most, device)


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that this process can still fill; None on a CPU, which starts to swap instead of failing."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)  # not in torch 2.6
        allowed = int(fraction * total)
        return max(0, min(free + torch.cuda.memory_reserved(device), allowed) - used)
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def release(device: torch.device) -> None:
    """Give back what a failed attempt held, once its error has been handled."""
    gc.collect()  # frames of the error may refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
