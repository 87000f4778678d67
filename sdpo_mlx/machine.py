"""What this machine can do for a run, and how to mend what it can't; looking never raises."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sdpo_mlx import __version__
from sdpo_mlx.errors import SdpoError

SLOW_GFLOPS = 20.0  # the reference BLAS reaches 4, any other 100 and more
LITTLE_DISK = 2 << 30  # bytes; a fetched small model with its import takes about one GB
EXTRAS = ("mkl", "torch", "datasets", "tensorboard", "wandb", "trackio", "mlflow")


@dataclass(frozen=True)
class Finding:
    """One thing looked at; without a `required` one the main job cannot run."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    required: bool = False


def examine() -> list[Finding]:
    """Everything, in the order a person would ask."""
    looks = (_python, _backend, _speed, _sandbox, _disk, _cache, _models, _torch, _extras)
    return [_safely(look) for look in looks]


def _safely(look: Callable[[], Finding]) -> Finding:
    name = look.__name__.removeprefix("_")
    try:
        return look()
    except SdpoError as error:
        return Finding(name, False, error.what, error.fix)
    except Exception as error:  # a broken machine is what this is for
        return Finding(name, False, f"{type(error).__name__}: {error}"[:300], "install sdpo-mlx again", name in NEEDED)


NEEDED = frozenset({"python", "backend"})


def _python() -> Finding:
    found = f"sdpo-mlx {__version__}, Python {platform.python_version()}, {platform.platform()}"
    return Finding("python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer", required=True)


def _backend() -> Finding:
    try:
        from sdpo_mlx.backends.mlx.speed import device_line

        return Finding("backend", True, device_line(), required=True)
    except ImportError as error:
        fix = "install sdpo-mlx again on macOS (Apple silicon) or Linux"
        return Finding("backend", False, f"mlx cannot be imported: {error}", fix, required=True)


def _speed() -> Finding:
    from sdpo_mlx.backends.mlx.speed import gigaflops

    speed = gigaflops()
    intel = platform.machine() in ("x86_64", "AMD64")
    fix = "pip install 'sdpo-mlx[fast-cpu]'" if intel else "apt install libopenblas0-pthread"
    return Finding("speed", speed >= SLOW_GFLOPS, f"{speed:.0f} GFLOP/s in float32, {os.cpu_count()} cores", fix)


def _sandbox() -> Finding:
    from sdpo_mlx.config import SandboxConfig
    from sdpo_mlx.sandbox.choice import open_sandbox

    sandbox = open_sandbox(SandboxConfig())
    holds = sandbox.self_test()
    note = " (not yet run on a Mac by us: please tell us)" if sandbox.kind == "seatbelt" else ""
    found = f"{sandbox.kind}{note}: {', '.join(k for k, ok in holds.items() if ok)}"
    return Finding("sandbox", all(holds.values()), found)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return Finding("disk", free > LITTLE_DISK, f"{free / 2**30:.1f} GB free here", "free some space")


def _cache() -> Finding:
    from sdpo_mlx.storage import cache_home

    home = cache_home()
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    fix = "choose another folder with the environment variable SDPO_HOME"
    return Finding("cache", os.access(nearest, os.W_OK), str(home), fix)


def _models() -> Finding:
    from sdpo_mlx.models import local_models, resolve

    here = ["tiny", *(folder.name for folder in local_models())]
    resolve("tiny")
    return Finding("models", True, f"here: {', '.join(here)}")


def _torch() -> Finding:
    if find_spec("torch") is None or find_spec("peft") is None:
        return Finding("torch", True, "not installed; needed for --backend torch alone: pip install 'sdpo-mlx[torch]'")
    from sdpo_mlx.backends.torch.speed import device_line

    return Finding("torch", True, device_line())


def _extras() -> Finding:
    here = [name for name in EXTRAS if find_spec(name) is not None or _distribution(name)]
    return Finding("extras", True, ", ".join(here) or "none installed, none needed")


def _distribution(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
