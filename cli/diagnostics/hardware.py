"""Checks of the hardware: processor, memory, power, Metal and its memory limit.

The macOS parts are pure functions of what macOS and MLX report, written from their manuals; not yet run on a Mac.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping

import psutil
from sdpo_cli.diagnostics.finding import Finding

from sdpo_mlx.backends.memory_plan import USABLE
from sdpo_mlx.core.hardware import total_memory

SECONDS = 2.0  # for one command
MB, GB = 1 << 20, 1 << 30
MIN_MEMORY = GB  # available memory below which even a small model may not fit
SYSTEM_RESERVE = 4 * GB  # what a limit raised by hand should leave to macOS
LARGE = 32 * GB  # below this, macOS needs what the default limit leaves to it
USUAL_LIMIT = 0.60  # of the memory: macOS lets Metal wire two thirds to three quarters by default
AWAKE = "for long runs: caffeinate -ims sdpo train ..."  # without -d the display may sleep: macOS kills long GPU work


def sysctl(name: str) -> str:
    """The value of a macOS kernel setting; blank if it cannot be read."""
    command = ("sysctl", "-n", name)
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", errors="replace").strip()


def chip() -> Iterator[Finding]:
    """The processor's name and the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    if sys.platform == "darwin":
        name, fix = mac_chip(sysctl("machdep.cpu.brand_string"), sysctl("sysctl.proc_translated"))
    else:
        try:
            from sdpo_mlx.backends.mlx.device import device_facts

            name = str(device_facts().get("device_name") or "")
        except (ImportError, OSError):  # without MLX the check `backend` fails, not this one
            name = ""
        name, fix = name or platform.processor() or platform.machine(), ""
    rosetta = ", but this Python is for Intel (Rosetta)" if fix and not name.startswith("Intel") else ""
    facts = {"chip": name, "cores": cores}
    yield Finding("chip", not fix, f"{name or 'unknown'}{rosetta}, {cores} cores", fix, facts=facts)


def mac_chip(brand: str, translated: str) -> tuple[str, str]:
    """Return name and fix, blank if there is no fault; `translated` is `sysctl.proc_translated`, 1 under Rosetta."""
    if translated == "1":
        check = "python3 -c 'import platform; print(platform.machine())'"
        return brand, f"install a Python for arm64; `{check}` prints arm64"
    return brand, "MLX needs Apple silicon: use another Mac, or Linux" if brand.startswith("Intel") else ""


def memory() -> Iterator[Finding]:
    """Total and available memory, and what `sdpo plan` uses of it."""
    total = total_memory()
    free = min(total, psutil.virtual_memory().available)
    facts = {"memory_bytes": total, "available_bytes": free, "plan_bytes": int(USABLE * total)}
    found = f"{_gb(total)}, {_gb(free)} available; a step may use {_gb(USABLE * total)}"
    yield Finding("memory", free >= MIN_MEMORY, found, "close other programs, or add memory", facts=facts)


def power() -> Iterator[Finding]:
    """Whether the machine runs on battery."""
    sensor = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    on_battery = None if sensor is None or sensor.power_plugged is None else not sensor.power_plugged
    charge = None if sensor is None else round(sensor.percent)
    facts = {"on_battery": on_battery, "charge_percent": charge}
    advice = f"; {AWAKE}" if sys.platform == "darwin" else ""
    if on_battery:
        found = f"on battery, {charge} %: slower, and the machine may sleep{advice}"
        yield Finding("power", False, found, "connect the charger before a long run", facts=facts)
    else:
        yield Finding("power", True, f"{'no battery' if sensor is None else 'connected'}{advice}", facts=facts)


def metal(available: bool, info: Mapping[str, object]) -> Finding:
    """Whether MLX computes on the GPU; `info` is `mx.device_info()`."""
    if not available:
        fix = "use macOS 14 or newer on Apple silicon, outside a virtual machine; training on the CPU is slow"
        return Finding("metal", False, "no: MLX finds no GPU", fix, facts={"metal": False})
    kind = ", ".join(str(info[key]) for key in ("device_name", "architecture") if info.get(key))
    return Finding("metal", True, f"yes{f': {kind}' if kind else ''}", facts={"metal": True})


def wired_limit(setting: str, memory: int, recommended: int) -> Finding:
    """How much of `memory` Metal may use: `iogpu.wired_limit_mb`, and MLX's recommended bytes (0: unknown).

    It is a fault if the limit was set by hand below the usual one, or so high that the system has too little.
    """
    limit = int(setting) * MB if setting.isdecimal() else None
    facts = {"wired_limit_bytes": limit, "recommended_bytes": recommended or None}
    source = f"Metal recommends {_gb(recommended)}" if recommended else "MLX reports no limit; three quarters assumed"
    if limit is None:
        return Finding("wired_limit", True, f"{source}; iogpu.wired_limit_mb cannot be read", facts=facts)
    if limit == 0:
        raised = (memory - 2 * SYSTEM_RESERVE) // MB
        advice = f"; for larger models: sudo sysctl iogpu.wired_limit_mb={raised} (until the next boot)"
        found = f"{source}; the limit is the system default{advice if memory >= LARGE else ''}"
        return Finding("wired_limit", True, found, facts=facts)
    found = f"{source}; iogpu.wired_limit_mb is {limit // MB} ({_gb(limit)} of {_gb(memory)})"
    fix = "restore the default: sudo sysctl iogpu.wired_limit_mb=0"
    if limit < USUAL_LIMIT * memory:
        return Finding("wired_limit", False, f"{found}, less than the default", fix, facts=facts)
    if limit > memory - min(SYSTEM_RESERVE, memory // 4):
        return Finding("wired_limit", False, f"{found}, too little left for the system", fix, facts=facts)
    return Finding("wired_limit", True, found, facts=facts)


def gpu_limits(limits: Mapping[str, int], operations: float, relaxed: str) -> Finding:
    """What MLX keeps to by default: bytes by name (empty without Metal), operations at once, and the watchdog.

    `relaxed` is the value of AGX_RELAX_CDM_CTXSTORE_TIMEOUT.
    """
    name, watchdog = "gpu_limits", "relaxed" if relaxed == "1" else "strict"
    if not limits:
        return Finding(name, True, "none: MLX sets its own without Metal", checked=False)
    gflop = round(operations / 1e9) if math.isfinite(operations) else None
    facts = {**{f"{each}_bytes": size for each, size in limits.items()}, "evaluation_gflop": gflop, "relaxed": relaxed}
    at_once = f"{gflop:,} GFLOP at once" if gflop else "no bound on what runs at once"
    found = f"MLX stays under {_gb(limits['memory'])}, cache {_gb(limits['cache'])}, wired memory off, {at_once}"
    fix = "unset AGX_RELAX_CDM_CTXSTORE_TIMEOUT: macOS ends long GPU work while a display is on (mlx 3267)"
    return Finding(name, relaxed == "1", f"{found}; watchdog {watchdog}", fix, facts=facts)


def _gb(count: float) -> str:
    return f"{count / GB:.1f} GB"
