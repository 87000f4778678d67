"""What this machine can do for a run, and how to mend what it can't; looking never raises."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from sdpo_cli.diagnostics import cpu, disk, macos, packages
from sdpo_cli.diagnostics.finding import Finding, looked, unchecked

from sdpo_mlx import __version__
from sdpo_mlx.core.hardware import total_memory

SLOW_GFLOPS = 10.0  # the reference BLAS reaches 4; any other 100 and more, where nothing else runs
MAC = "darwin"
NO_MAC = "only a Mac has it"
CARDS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # where a driver of NVIDIA's is at work; the second one on WSL


def examine() -> list[Finding]:
    """Everything, in the order a person would ask."""
    looks = (
        ("python", _python, True),
        ("packages", packages.needed, True),
        ("chip", cpu.look, False),
        ("memory", cpu.memory, False),
        ("backend", _backend, True),
        ("blas", _blas, False),
        ("metal", _metal, False),
        ("wired_limit", _wired, False),
        ("display", _display, False),
        ("power", _power, False),
        ("sandbox", _sandbox, False),
        ("disk", disk.runs, True),
        ("cache", disk.caches, False),
        ("models", _models, False),
        ("torch", _torch, False),
        ("extras", packages.extras, False),
    )
    return [finding for name, look, required in looks for finding in looked(name, look, required)]


def _python() -> Iterator[Finding]:
    facts = {"sdpo_mlx": __version__, "python": platform.python_version(), "system": platform.platform()}
    found = f"sdpo-mlx {__version__}, Python {facts['python']}, {facts['system']}"
    yield Finding("python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer", True, facts=facts)


def _backend() -> Iterator[Finding]:
    try:
        from sdpo_mlx.backends.mlx.device import device_facts, device_line
    except (ImportError, OSError) as error:
        fix = "install sdpo-mlx again, with a Python for arm64 on macOS (Apple silicon) or on Linux"
        yield Finding("backend", False, f"mlx cannot be imported: {error}"[:300], fix, required=True)
        return
    facts = {"mlx": packages.installed("mlx"), "device": str(device_facts().get("device_name") or "")}
    yield Finding("backend", True, device_line(), required=True, facts=facts)


def _blas() -> Iterator[Finding]:
    from sdpo_mlx.backends.mlx import BLAS
    from sdpo_mlx.backends.mlx.blas import blas_threads
    from sdpo_mlx.backends.mlx.device import gigaflops

    speed, threads = gigaflops(), blas_threads(BLAS)
    facts = {"blas": BLAS, "gflops": round(speed, 1), "threads": threads}
    with_threads = f" on {threads} thread{'s' if threads > 1 else ''}" if threads else ""
    found = f"{'Accelerate' if BLAS == 'system' else BLAS}: {speed:.0f} GFLOP/s in float32{with_threads}"
    yield Finding("blas", speed >= SLOW_GFLOPS, found, blas_fix(BLAS, platform.machine()), facts=facts)


def blas_fix(blas: str, machine: str) -> str:
    """How to multiply faster, by the library in use and the kind of processor."""
    if blas != "reference":
        return "other programs are using the processor, or OMP_NUM_THREADS is low: look, and run `sdpo doctor` again"
    return "pip install 'sdpo-mlx[fast-cpu]'" if machine in ("x86_64", "AMD64") else "apt install libopenblas0-pthread"


def _metal() -> Iterator[Finding]:
    if sys.platform != MAC:
        yield Finding("metal", True, "no: that is Apple's; `backend` says what computes here", facts={"metal": False})
        return
    from sdpo_mlx.backends.mlx.device import device_facts, gigaflops, has_metal

    found = macos.metal(has_metal(), device_facts())
    if found.ok:
        speed = gigaflops(gpu=True)
        facts = {**found.facts, "gflops": round(speed, 1)}
        found = Finding("metal", True, f"{found.found}, {speed:,.0f} GFLOP/s in float32", facts=facts)
    yield found


def _wired() -> Iterator[Finding]:
    if sys.platform != MAC:
        yield unchecked("wired_limit", NO_MAC)
        return
    from sdpo_mlx.backends.mlx.device import device_facts

    recommended = device_facts().get("max_recommended_working_set_size")
    setting = macos.said("sysctl", "-n", "iogpu.wired_limit_mb")
    yield macos.wired(setting, total_memory(), recommended if isinstance(recommended, int) else 0)


def _display() -> Iterator[Finding]:
    yield macos.display(macos.said("pmset", "-g")) if sys.platform == MAC else unchecked("display", NO_MAC)


def _power() -> Iterator[Finding]:
    if sys.platform == MAC:
        yield macos.battery(macos.said("pmset", "-g", "batt"), macos.said("pmset", "-g"))
    else:
        yield unchecked("power", "asked of Macs alone")


def _sandbox() -> Iterator[Finding]:
    from sdpo_mlx.config import SandboxConfig
    from sdpo_mlx.core.errors import SandboxError
    from sdpo_mlx.sandbox.choice import open_sandbox

    try:
        sandbox = open_sandbox(SandboxConfig())
    except SandboxError as error:
        found = f"{error.what}; only tasks that run programs (code) need one"
        yield Finding("sandbox", False, found, error.fix, facts={"kind": None, "holds": [], "fails": []})
        return
    checks = sandbox.self_test()
    holds, fails = ([name for name, ok in checks.items() if ok is wanted] for wanted in (True, False))
    note = " (not yet run on a Mac by us: please tell us)" if sandbox.kind == "seatbelt" else ""
    found = f"{sandbox.kind}{note}: {', '.join(holds)}" + (f"; fails: {', '.join(fails)}" if fails else "")
    fix = "set sandbox.kind to container, with podman or docker"
    yield Finding("sandbox", not fails, found, fix, facts={"kind": sandbox.kind, "holds": holds, "fails": fails})


def _models() -> Iterator[Finding]:
    from sdpo_mlx.models.resolve import local_models, resolve

    resolve("tiny")
    here = ["tiny", *(folder.name for folder in local_models())]
    found = f"in our cache: {', '.join(here)}; `sdpo models list` looks everywhere"
    yield Finding("models", True, found, facts={"here": here})


def _torch() -> Iterator[Finding]:
    made, card = packages.installed("torch"), any(each.exists() for each in CARDS)
    make = partial(Finding, "torch", facts={"version": made or None, "nvidia_driver": card})
    install = "pip install 'sdpo-mlx[torch]'"
    if not made or find_spec("peft") is None:
        why = "an NVIDIA driver is here; to use the card" if card else "needed for --backend torch alone"
        yield make(True, f"not installed; {why}: {install}")
    elif card or sys.platform == MAC:
        try:
            from sdpo_mlx.backends.torch.device import device_line

            yield make(True, device_line())
        except Exception as error:  # whatever a library that does not fit its driver raises
            yield make(False, f"torch {made} does not load: {type(error).__name__}: {error}"[:300], install)
    else:
        yield make(True, f"torch {made}, not loaded: no NVIDIA driver here, so it would run on the processor")
