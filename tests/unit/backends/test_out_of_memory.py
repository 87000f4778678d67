"""Running out of memory on torch has many names, and is reported in one line."""

from __future__ import annotations

import pytest
from requirements import needs_torch

from sdpo_mlx.core.errors import ConfigError, CrashedError

pytestmark = needs_torch

TEXTS = {
    "CUDA driver": "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "cuBLAS": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "NCCL": "NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    "Triton": "Triton Error [CUDA]: out of memory",
    "Apple's GPU": "MPS backend out of memory (MPS allocated: 8.00 GiB, max allowed: 9.07 GiB).",
    "processor": "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to",
}
OTHERS = ("shape '[24, 24]' is invalid", "out of resource: shared memory, Required: 132096, Hardware limit: 101376")


@pytest.mark.parametrize("name", TEXTS)
def test_each_library_s_text_is_recognised(name: str) -> None:
    from sdpo_mlx.backends.torch.out_of_memory import is_out_of_memory

    assert is_out_of_memory(RuntimeError(TEXTS[name]))
    assert not is_out_of_memory(ValueError(TEXTS[name]))


def test_allocators_own_errors_are_recognised_and_others_are_not() -> None:
    import torch

    from sdpo_mlx.backends.torch.out_of_memory import is_out_of_memory

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not any(is_out_of_memory(RuntimeError(text)) for text in OTHERS)
    assert not is_out_of_memory(CrashedError("the process ended again", where="step 3; probably out of memory"))


def test_running_out_of_memory_is_reported_in_one_line() -> None:
    from sdpo_mlx.backends.torch.out_of_memory import reported

    with pytest.raises(ConfigError) as caught, reported("in the optimizer's step", "use a smaller model"):
        raise RuntimeError(TEXTS["CUDA driver"])
    assert caught.value.line() == "out of memory in the optimizer's step (model). Use a smaller model."
    with pytest.raises(RuntimeError, match="invalid"), reported("anywhere", ""):
        raise RuntimeError(OTHERS[0])
