"""Running out of memory on torch: recognised under every name it has, and reported in one line."""

from __future__ import annotations

import gc
import re
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


def release(device: torch.device) -> None:
    """Give back what a failed attempt held, once its error has been handled."""
    gc.collect()  # frames of the error may refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
