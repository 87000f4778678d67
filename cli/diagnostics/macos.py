"""What macOS says of itself: the chip, how much memory Metal may wire, when the display and the machine sleep.

Pure functions of what its commands print, written from their manuals; none of this has been run on a Mac by us.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from sdpo_cli.diagnostics.finding import Finding

SECONDS = 2.0  # for one command
MB, GB = 1 << 20, 1 << 30
KEPT_FREE = 4 * GB  # what a limit raised by hand should leave to the system
LARGE = 32 * GB  # below, the system needs what the default leaves to it
USUAL = 0.60  # of the memory: macOS wires two thirds to three quarters unless told otherwise
WATCHDOG = "macOS may kill long GPU work while the display is on"
AWAKE = "caffeinate -ims sdpo train ..."  # without -d: the machine stays awake, the display may sleep
TOO_LONG = "let it sleep: sudo pmset -a displaysleep 10"


def said(*command: str) -> str:
    """What a command prints; blank where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", errors="replace").strip()


def chip(brand: str, translated: str) -> Finding:
    """The chip by `sysctl -n machdep.cpu.brand_string`, and `sysctl.proc_translated`: 1 under Rosetta."""
    name = brand.strip() or "unknown"
    if translated.strip() == "1":
        fix = "install a Python for arm64; `python3 -c 'import platform; print(platform.machine())'` must say arm64"
        return Finding("chip", False, f"{name}, but this Python is Intel's (Rosetta)", fix, facts={"chip": name})
    if name.startswith("Intel"):
        return Finding("chip", False, name, "MLX needs Apple silicon: use another Mac, or Linux", facts={"chip": name})
    return Finding("chip", True, name, facts={"chip": name})


def wired(setting: str, memory: int, recommended: int) -> Finding:
    """How much of `memory` Metal may hold: `sysctl -n iogpu.wired_limit_mb`, and MLX's recommended bytes (0: unknown).

    A fault is a limit set by hand that is below the usual one, or that leaves too little to the system.
    """
    limit = int(setting.strip()) * MB if setting.strip().isdecimal() else None
    facts = {"wired_limit_bytes": limit, "recommended_bytes": recommended or None}
    told = (
        f"Metal recommends {_gb(recommended)}" if recommended else "MLX gives no recommended size; three quarters taken"
    )
    if limit is None:
        return Finding("wired_limit", True, f"{told}; iogpu.wired_limit_mb cannot be read", facts=facts)
    if limit == 0:
        return Finding("wired_limit", True, f"{told}; the limit is the system's default{_raise(memory)}", facts=facts)
    found = f"{told}; iogpu.wired_limit_mb is set to {limit // MB} ({_gb(limit)} of {_gb(memory)})"
    back = "back to the default: sudo sysctl iogpu.wired_limit_mb=0"
    if limit < USUAL * memory:
        return Finding("wired_limit", False, f"{found}, less than the default gives", back, facts=facts)
    if limit > memory - min(KEPT_FREE, memory // 4):
        return Finding("wired_limit", False, f"{found}, which leaves the system too little", back, facts=facts)
    return Finding("wired_limit", True, found, facts=facts)


def display(settings: str) -> Finding:
    """When the display sleeps, by `pmset -g`: MLX's long commands are at risk while it is on."""
    found = re.search(r"^\s*displaysleep\s+(\d+)(.*)$", settings, re.MULTILINE)
    if found is None:
        advice = f"not told by pmset; {WATCHDOG}; for long runs: {AWAKE}"
        return Finding("display", True, advice, facts={"display_sleep_minutes": None})
    minutes, prevented = int(found[1]), "prevented" in found[2]
    facts = {"display_sleep_minutes": minutes, "prevented": prevented}
    if minutes == 0 or prevented:
        why = "something keeps it on now" if prevented else "it never sleeps"
        return Finding("display", False, f"{why}; {WATCHDOG}", f"{TOO_LONG}; and train with: {AWAKE}", facts=facts)
    return Finding("display", True, f"sleeps after {minutes} min; for long runs: {AWAKE}", facts=facts)


def battery(source: str, settings: str) -> Finding:
    """Whether it runs on battery, by `pmset -g batt`, and the low power mode of `pmset -g`."""
    drawn = re.search(r"drawing from '([^']*)'", source)
    left = re.search(r"\b(\d{1,3})%", source)
    low = re.search(r"^\s*(?:lowpowermode|powermode)\s+1\b", settings, re.MULTILINE) is not None
    on_battery = drawn is not None and "Battery" in drawn[1]
    charge = int(left[1]) if left else None
    facts = {"on_battery": on_battery if drawn else None, "charge_percent": charge, "low_power_mode": low}
    if on_battery:
        found = f"on battery{f', {charge} %' if charge is not None else ''}: slower, and the Mac sleeps with its lid"
        return Finding("power", False, found, "plug it in before a long run", facts=facts)
    if low:
        fix = "sudo pmset -a lowpowermode 0, or System Settings, Battery"
        return Finding("power", False, "the low power mode is on: training is slower", fix, facts=facts)
    return Finding("power", True, "on mains" if drawn else "not told by pmset", facts=facts)


def metal(available: bool, info: Mapping[str, object]) -> Finding:
    """Whether MLX computes on the GPU, by its own word; `info` is what MLX tells of the device."""
    if not available:
        fix = "use macOS 14 or newer on Apple silicon, outside a virtual machine; training on the processor is slow"
        return Finding("metal", False, "no: MLX sees no GPU", fix, facts={"metal": False})
    kind = ", ".join(str(info[key]) for key in ("device_name", "architecture") if info.get(key))
    return Finding("metal", True, f"yes{f': {kind}' if kind else ''}", facts={"metal": True})


def _raise(memory: int) -> str:
    """The command that gives a large Mac more; below `LARGE` there is nothing to win."""
    if memory < LARGE:
        return ""
    return (
        f"; for larger models, until the next start: sudo sysctl iogpu.wired_limit_mb={(memory - 2 * KEPT_FREE) // MB}"
    )


def _gb(count: float) -> str:
    return f"{count / GB:.1f} GB"
