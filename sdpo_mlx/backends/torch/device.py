"""The device that torch runs on, the type of its weights, and its memory in bytes."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress

import torch

from sdpo_mlx.backends.torch.out_of_memory import free_bytes
from sdpo_mlx.config import ModelConfig
from sdpo_mlx.core import gpu
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.hardware import total_memory

ON_APPLE = "PyTorch runs on Apple's GPU, for which MLX is made: use --backend mlx if it knows the model"
FULL = "adapter.kind full is computed in float32 on a card: about 20 bytes of memory a parameter, and slow"


def device_of(name: str) -> torch.device:
    """Return the device, of CUDA with its index; `auto` is CUDA, then Apple's GPU, then the CPU.

    Raise ConfigError if it does not exist, or if `auto` would be the CPU beside an NVIDIA card.
    """
    here = {"cuda": has_cuda(), "mps": torch.backends.mps.is_available(), "cpu": True}
    card = None if here["cuda"] or name not in ("auto", "cuda") else gpu.card()
    if card is not None and (name == "cuda" or card.vendor == "NVIDIA"):  # AMD's may be graphics that ROCm lacks
        what, fix = gpu.why_unused(card, build())
        raise ConfigError(what, where="model.device", fix=fix)
    if name == "auto":
        name = next(each for each, found in here.items() if found)
    if not here[name]:
        fix = f"choose {', '.join(each for each, found in here.items() if found)}"
        raise ConfigError(f"torch finds no {name} here", where="model.device", fix=fix)
    # transformers loads in threads of its own, whose current device is card 0.
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def has_cuda() -> bool:
    """Return whether torch can use a card; its warning about an old driver is left to `gpu.why_unused`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def build() -> gpu.TorchBuild:
    """Return what the imported torch was built for."""
    return gpu.TorchBuild(torch.__version__, torch.version.cuda or "", getattr(torch.version, "hip", None) or "")


def dtype_on_card(cfg: ModelConfig) -> str:
    """Return the type of the weights on CUDA: bfloat16 if the card multiplies it, otherwise float32."""
    if cfg.dtype != "auto":
        return cfg.dtype
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def device_notes(device: torch.device, dtype: torch.dtype, cfg: ModelConfig) -> tuple[str, ...]:
    """Return warnings about how a model runs on this device, one line each."""
    found: list[str] = []
    if device.type == "mps":
        found.append(ON_APPLE)
    if device.type == "cpu" and cfg.device == "auto" and (card := gpu.card()):
        found.append(". ".join(gpu.why_unused(card, build())))
    if dtype == torch.float16 and device.type != "cpu":
        better = dtype_on_card(cfg.model_copy(update={"dtype": "auto"})) if device.type == "cuda" else "float32"
        found.append(f"float16 has no loss scaling here, small gradients are lost: use --set model.dtype={better}")
    if device.type == "cuda" and cfg.adapter.kind == "full":
        found.append(FULL)
    return tuple(found)


def device_line() -> str:
    """Return the device that `--backend torch` would use, with the name of its GPU, for `sdpo doctor`."""
    device = device_of("auto")
    card = f" ({torch.cuda.get_device_name()})" if device.type == "cuda" else ""
    return f"torch {torch.__version__} on {device.type}{card}"


class MemoryMeter:
    """Peaks by phase in bytes since the last `read`, on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.phase, self.peaks, self.reserved = device, "load", dict[str, int](), 0

    def begin(self, phase: str) -> None:
        """Count memory for `phase` from here on."""
        self._note()
        self.phase = phase

    def read(self) -> dict[str, int]:
        """Return `current`, `peak`, `limit` (0: unknown) and the phases' peaks, and reset those; on CUDA alone.

        There current and peak are what the process keeps from others, free blocks of torch's allocator included; the
        limit is that and what is free. A phase's peak is what its tensors took.
        """
        if self.device.type != "cuda":
            return memory_figures(self.device)
        self._note()
        held, phases, peak = torch.cuda.memory_reserved(self.device), self.peaks, self.reserved
        self.peaks, self.reserved = {}, 0
        limit = held + torch.cuda.mem_get_info(self.device)[0]
        return {"current": held, "peak": peak, "limit": limit, **phases}

    def _note(self) -> None:
        if self.device.type == "cuda":
            seen = torch.cuda.max_memory_allocated(self.device)
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), seen)
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)


def memory_figures(device: torch.device) -> dict[str, int]:
    """Return `current`, `peak` and `limit`: of Apple's GPU, whose peak is unknown, or of the process on a CPU."""
    if device.type == "mps":
        now = torch.mps.current_allocated_memory()
        return {"current": now, "peak": now, "limit": torch.mps.recommended_max_memory()}
    peak = _process_peak()
    return {"current": peak, "peak": peak, "limit": total_memory()}


def free_on_card() -> int | None:
    """Return the bytes that are free on the card that a run would use; None without one."""
    if not has_cuda():
        return None
    with suppress(RuntimeError):  # another process may hold the card for itself alone
        return free_bytes(device_of("cuda"))
    return None


def _process_peak() -> int:
    """The most memory that this process has held; 0 on Windows, which does not say."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
