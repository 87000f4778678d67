"""The graphics card of this machine, and whether an installed library can use it; none of them is imported."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

MODULE = Path("/proc/driver/nvidia/version")  # of the loaded driver; also inside a container that was given no card
NVIDIA_DEVICES = Path("/dev"), "nvidia[0-9]*"
AMD_DEVICE = Path("/dev/kfd")  # AMD's compute driver, which serves integrated graphics too
SECONDS = 5.0  # for nvidia-smi, which takes one or two after a boot
# CUDA's major version -> the oldest driver for it (Linux; NVIDIA's "CUDA Compatibility").
OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}
MLX_CUDA = ("mlx-cuda-12", "mlx-cuda-13")
WHEELS = "pytorch.org/get-started/locally lists them"
ON_CPU = "or compute on the CPU: --set model.device=cpu"


@dataclass(frozen=True)
class Card:
    """A card: `driver` is its version (blank: unknown), `device` whether the system offers the card itself."""

    vendor: str
    driver: str = ""
    device: bool = True

    def __str__(self) -> str:
        """`an NVIDIA card (driver 535.104)`."""
        return f"an {self.vendor} card" + (f" (driver {self.driver})" if self.driver else "")


@dataclass(frozen=True)
class TorchBuild:
    """The installed torch: its version, and the versions of CUDA and ROCm that it was built for (blank: without)."""

    version: str
    cuda: str
    rocm: str


def card() -> Card | None:
    """Return the card that CUDA or ROCm could use; None if there is none, or if CUDA_VISIBLE_DEVICES hides all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    module, device = _module_version(), any(NVIDIA_DEVICES[0].glob(NVIDIA_DEVICES[1]))
    if module or device:
        return Card("NVIDIA", module or _smi_version() or "", device)
    if (driver := _smi_version()) is not None:  # on WSL there is neither
        return Card("NVIDIA", driver, bool(driver))
    return Card("AMD") if AMD_DEVICE.exists() else None


def torch_build() -> TorchBuild | None:
    """Return what the installed torch was built for, from its file `version.py`; None without torch."""
    spec = find_spec("torch")
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is None:
        return None
    file = Path(folder) / "version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = {
        name: match[1] for name, match in ((n, _assigned(n, text)) for n in ("__version__", "cuda", "hip")) if match
    }
    return TorchBuild(found.get("__version__", ""), found.get("cuda", ""), found.get("hip", ""))


def why_unused(found: Card, build: TorchBuild) -> tuple[str, str]:
    """Return why torch cannot use a card that is there, and the fix."""
    name, oldest = f"torch {build.version}", OLDEST_DRIVER.get(build.cuda.partition(".")[0])
    if found.vendor == "AMD":
        built = "finds no device" if build.rocm else "is built without ROCm"
        return f"{found} is here, but {name} {built}", f"install torch for ROCm ({WHEELS}), {ON_CPU}"
    if not build.cuda:
        return f"{found} is here, but {name} is built without CUDA", f"install torch for CUDA ({WHEELS}), {ON_CPU}"
    if oldest and found.driver and _major(found.driver) < oldest:
        what = f"{found} is here, but {name} is built for CUDA {build.cuda}, which needs driver {oldest} or newer"
        return what, f"update the driver, or install torch for an older CUDA ({WHEELS}), {ON_CPU}"
    what = f"{found} is here, but {name} (CUDA {build.cuda}) finds no device"
    return what, f"run nvidia-smi to see why (a container needs --gpus all), {ON_CPU}"


def prefers_torch() -> bool:
    """Return whether `backend: auto` is torch: an NVIDIA card that it can use, and MLX would run on the CPU."""
    if sys.platform == "darwin" or "MLX_RANK" in os.environ or mlx_has_cuda():
        return False
    build = torch_build()
    if build is None or not build.cuda or find_spec("peft") is None:
        return False
    found = card()
    if found is None or found.vendor != "NVIDIA" or not found.device:
        return False
    oldest = OLDEST_DRIVER.get(build.cuda.partition(".")[0], 0)
    return not found.driver or _major(found.driver) >= oldest


def backend_notice(backend: str) -> str:
    """Return the line to print about the backend on a machine with an NVIDIA card; blank if there is nothing to say."""
    if backend == "torch":
        return "backend torch: an NVIDIA card is here, and MLX has no GPU" if prefers_torch() else ""
    found = card() if sys.platform != "darwin" and not mlx_has_cuda() else None
    if found is None or found.vendor != "NVIDIA":
        return ""
    return f"{found} is here, but MLX runs on the CPU; to use it: pip install 'sdpo-mlx[torch]', and --backend torch"


def allocator_setting() -> str:
    """Return the variable that sets torch's allocator on an NVIDIA card, read when torch is imported; blank elsewhere.

    WSL's driver has no segments that grow. The name changed in torch 2.10.
    """
    found, build = card(), torch_build()
    if sys.platform != "linux" or "microsoft" in platform.release().lower():
        return ""
    if found is None or found.vendor != "NVIDIA" or build is None:
        return ""
    major, minor = (int(part) for part in build.version.split(".")[:2])
    return "PYTORCH_ALLOC_CONF" if (major, minor) >= (2, 10) else "PYTORCH_CUDA_ALLOC_CONF"


def mlx_has_cuda() -> bool:
    """Return whether MLX's CUDA build is installed."""
    return any(_installed(name) for name in MLX_CUDA)


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _module_version() -> str:
    try:
        found = re.search(r"Kernel Module\D*(?:for \S+\s+)?(\d+\.\d+(?:\.\d+)?)", MODULE.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[1] if found else ""


@cache
def _smi_version() -> str | None:
    """The driver's version that nvidia-smi prints; blank if it fails, None if there is no nvidia-smi."""
    program = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    if program is None:
        return None
    words = (program, "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(
            words, capture_output=True, check=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    first = done.stdout.strip().partition("\n")[0]
    return first if re.fullmatch(r"[\d.]+", first) else ""


def _assigned(name: str, text: str) -> re.Match[str] | None:
    return re.search(rf"^{name}\b[^=\n]*= '([^']*)'", text, re.MULTILINE)


def _major(driver: str) -> int:
    return int(driver.partition(".")[0])
