"""All checks of `sdpo doctor`, in order; none raises."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

from sdpo_cli.diagnostics import disk, hardware, packages
from sdpo_cli.diagnostics.finding import Finding, run_check

from sdpo_mlx import __version__
from sdpo_mlx.core import gpu
from sdpo_mlx.core.hardware import total_memory
from sdpo_mlx.sandbox.interpreter import python_build

SLOW_GFLOPS = 10.0  # the reference BLAS reaches 4, any other 100 and more on an idle machine
MAC = "darwin"


def examine() -> list[Finding]:
    """Run all checks."""
    checks = (
        ("python", _python, True),
        ("packages", packages.needed, True),
        ("chip", hardware.chip, False),
        ("memory", hardware.memory, False),
        ("backend", _backend, True),
        ("blas", _blas, False),
        ("metal", _metal, False),
        ("wired_limit", _wired_limit, False),
        ("gpu_limits", _gpu_limits, False),
        ("power", hardware.power, False),
        ("sandbox", _sandbox, False),
        ("disk", disk.runs, True),
        ("cache", disk.caches, False),
        ("models", _models, False),
        ("torch", _torch, False),
        ("extras", packages.extras, False),
    )
    return [finding for name, check, required in checks for finding in run_check(name, check, required)]


def _python() -> Iterator[Finding]:
    facts = {"sdpo_mlx": __version__, "python": platform.python_version(), "system": platform.platform()}
    facts["build"] = python_build()
    found = f"sdpo-mlx {__version__}, Python {facts['python']} ({facts['build']}), {facts['system']}"
    yield Finding("python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer", True, facts=facts)


def _backend() -> Iterator[Finding]:
    try:
        from sdpo_mlx.backends.mlx.device import device_facts, device_line
    except (ImportError, OSError) as error:
        fix = "reinstall sdpo-mlx on Linux, or on Apple silicon with a Python for arm64"
        yield Finding("backend", False, f"mlx cannot be imported: {error}"[:300], fix, required=True)
        return
    facts = {"mlx": packages.installed("mlx"), "device": str(device_facts().get("device_name") or "")}
    yield Finding("backend", True, device_line(), required=True, facts=facts)
    cuda = next((name for name in gpu.MLX_CUDA if packages.installed(name)), None)
    if cuda and packages.installed("mlx-cpu"):
        found = f"mlx-cpu and {cuda} are both installed, and install the same file (mlx/lib/libmlx.so)"
        fix = f"pip uninstall mlx-cpu, then pip install --force-reinstall {cuda}=={facts['mlx']}"
        yield Finding("backend", False, found, fix)


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
    """The fix for slow matrix products, by BLAS library and processor."""
    if blas != "reference":
        return "close programs that use the CPU, check OMP_NUM_THREADS, and run `sdpo doctor` again"
    return "pip install 'sdpo-mlx[fast-cpu]'" if machine in ("x86_64", "AMD64") else "apt install libopenblas0-pthread"


def _metal() -> Iterator[Finding]:
    if sys.platform != MAC:
        yield Finding("metal", True, "no: only on a Mac; see `backend`", facts={"metal": False})
        return
    from sdpo_mlx.backends.mlx.device import device_facts, gigaflops, has_metal

    found = hardware.metal(has_metal(), device_facts())
    if found.ok:
        speed = gigaflops(gpu=True)
        facts = {**found.facts, "gflops": round(speed, 1)}
        found = Finding("metal", True, f"{found.found}, {speed:,.0f} GFLOP/s in float32", facts=facts)
    yield found


def _wired_limit() -> Iterator[Finding]:
    if sys.platform != MAC:
        yield Finding("wired_limit", True, "not checked: only on a Mac", checked=False)
        return
    from sdpo_mlx.backends.mlx.device import device_facts

    recommended = device_facts().get("max_recommended_working_set_size")
    setting = hardware.sysctl("iogpu.wired_limit_mb")
    yield hardware.wired_limit(setting, total_memory(), recommended if isinstance(recommended, int) else 0)


def _gpu_limits() -> Iterator[Finding]:
    try:
        from sdpo_mlx.backends.mlx.device import chip_name
        from sdpo_mlx.backends.mlx.limits import limit_bytes
    except (ImportError, OSError) as error:
        yield Finding("gpu_limits", True, f"not checked: mlx cannot be imported: {error}"[:300], checked=False)
        return
    from sdpo_mlx.backends.command_size import evaluation_limit
    from sdpo_mlx.config import MemoryConfig

    limits = limit_bytes(MemoryConfig())
    relaxed = os.environ.get("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "")
    yield hardware.gpu_limits(limits, evaluation_limit(None, chip_name()), relaxed)


def _sandbox() -> Iterator[Finding]:
    from sdpo_mlx.config import SandboxConfig
    from sdpo_mlx.core.errors import SandboxError
    from sdpo_mlx.sandbox.choice import open_sandbox

    try:
        sandbox = open_sandbox(SandboxConfig())
    except SandboxError as error:
        found = f"{error.what}; {_container_line()}; only tasks that run code need one"
        yield Finding("sandbox", False, found, error.fix, facts={"kind": None, "holds": [], "fails": []})
        return
    checks = sandbox.self_test()
    holds, fails = ([name for name, ok in checks.items() if ok is expected] for expected in (True, False))
    note = " (not yet tested on a Mac: please report)" if sandbox.kind == "seatbelt" else ""
    found = f"{sandbox.kind}{note}: {', '.join(holds)}" + (f"; fails: {', '.join(fails)}" if fails else "")
    fix = "set sandbox.kind to container and install podman or docker"
    yield Finding("sandbox", not fails, found, fix, facts={"kind": sandbox.kind, "holds": holds, "fails": fails})


def _container_line() -> str:
    """Say whether the advice to use a container leads anywhere here."""
    from sdpo_mlx.config import SandboxConfig
    from sdpo_mlx.core.errors import SandboxError
    from sdpo_mlx.sandbox.choice import open_sandbox

    try:
        open_sandbox(SandboxConfig(kind="container"))
    except SandboxError as error:
        return f"container: {error.what.rpartition('programs: ')[2]}"
    return "container: works, with --sandbox container"


def _models() -> Iterator[Finding]:
    from sdpo_mlx.models.resolve import cached_folders, resolve

    resolve("tiny")
    here = ["tiny", *(folder.name for folder in cached_folders())]
    found = f"in the cache: {', '.join(here)}; `sdpo models list` shows all"
    yield Finding("models", True, found, facts={"here": here})


def _torch() -> Iterator[Finding]:
    installed, card = packages.installed("torch"), gpu.card()
    nvidia, driver = card is not None and card.vendor == "NVIDIA", card.driver if card else ""
    facts = {"version": installed or None, "nvidia_driver": nvidia, "card": str(card or ""), "driver": driver}
    finding = partial(Finding, "torch", facts=facts)
    install = "pip install 'sdpo-mlx[torch]'"
    if not installed or find_spec("peft") is None:
        why = f"to use {card}" if card else "only needed for --backend torch"
        yield finding(True, f"not installed; {why}: {install}")
    elif card or sys.platform == MAC:
        try:
            from sdpo_mlx.backends.torch.device import device_line, has_cuda

            build = gpu.torch_build()
            if card and build and not has_cuda():
                what, fix = gpu.why_unused(card, build)
                yield finding(False, what, fix) if nvidia else finding(True, f"{what}; to use it: {fix}")
                return
            apple = "; on a Mac use --backend mlx, which is made for its GPU" if sys.platform == MAC else ""
            chosen = ", which --backend auto chooses" if gpu.prefers_torch() else ""
            yield finding(True, f"{device_line()}{chosen}{apple}")
        except Exception as error:  # any error of a library that does not match its driver
            yield finding(False, f"torch {installed} does not load: {type(error).__name__}: {error}"[:300], install)
    else:
        yield finding(True, f"torch {installed}, not loaded: no NVIDIA driver, it would run on the CPU")
