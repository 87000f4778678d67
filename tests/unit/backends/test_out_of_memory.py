"""Running out of memory on torch has many names, and is reported in one line."""

from __future__ import annotations

import platform
from typing import Any

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


class FakeCard:
    """The memory counters of a card of 24 GB, 4 of them used by another program."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        import torch

        self.allocated, self.reserved, self.peaks, self.fraction = 8, 10, (9, 12), 1.0
        functions: dict[str, Any] = {
            "memory_allocated": lambda _: self.allocated,
            "memory_reserved": lambda _: self.reserved,
            "max_memory_allocated": lambda _: self.peaks[0],
            "max_memory_reserved": lambda _: self.peaks[1],
            "reset_peak_memory_stats": lambda _: setattr(self, "peaks", (self.allocated, self.reserved)),
            "mem_get_info": lambda _: (24 - 4 - self.reserved, 24),
            "get_per_process_memory_fraction": lambda _: self.fraction,
            "set_per_process_memory_fraction": lambda fraction, _: setattr(self, "fraction", fraction),
        }
        for name, function in functions.items():
            patch.setattr(torch.cuda, name, function, raising=False)
        self.device = torch.device("cuda", 0)


def test_free_memory_counts_cached_blocks_and_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sdpo_mlx.backends.torch.out_of_memory import free_bytes

    card = FakeCard(monkeypatch)
    assert free_bytes(card.device) == 24 - 4 - 8
    card.fraction = 0.5
    assert free_bytes(card.device) == 12 - 8
    assert free_bytes(torch.device("cpu")) is None


def test_memory_figures_of_a_card_are_what_it_keeps_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch.device import MemoryMeter

    card = FakeCard(monkeypatch)
    meter = MemoryMeter(card.device)
    meter.begin("generate")
    card.peaks = (15, 17)
    meter.begin("learn")
    card.peaks = (11, 14)
    assert meter.read() == {"current": 10, "peak": 17, "limit": 20, "load": 9, "generate": 15, "learn": 11}
    assert meter.read() == {"current": 10, "peak": 10, "limit": 20, "learn": 8}


@pytest.mark.parametrize(
    ("release", "half", "fraction"),
    [
        ("6.8.0-generic", False, 1.0),
        ("6.8.0-generic", True, 0.5),
        ("5.15.0-microsoft-standard-WSL2", False, 0.95),
        ("5.15.0-microsoft-standard-WSL2", True, 0.5),
    ],
)
def test_card_is_bounded_by_the_user_and_before_its_driver_spills(
    release: str, half: bool, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdpo_mlx.backends.torch.out_of_memory import bound_memory

    card = FakeCard(monkeypatch)
    monkeypatch.setattr(platform, "release", lambda: release)
    bound_memory(card.device, 12 / 2**30 if half else None)
    assert card.fraction == pytest.approx(fraction)
