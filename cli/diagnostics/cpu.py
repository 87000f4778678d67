"""The processor and the memory of this machine, as its system tells them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from sdpo_cli.diagnostics import macos
from sdpo_cli.diagnostics.finding import Finding

from sdpo_mlx.backends.memory_plan import USABLE
from sdpo_mlx.core.hardware import total_memory

CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
GB = 1 << 30
LITTLE = GB  # free memory below which even a small model may not fit
_MAKERS: Mapping[int, str] = {
    0x41: "ARM", 0x42: "Broadcom", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x4E: "NVIDIA", 0x50: "Applied Micro",
    0x51: "Qualcomm", 0x53: "Samsung", 0x61: "Apple", 0x6D: "Microsoft", 0xC0: "Ampere",
}  # fmt: skip
# Arm's own cores in servers and small boards; others show their part's number.
_ARM_PARTS: Mapping[int, str] = {
    0xD03: "Cortex-A53", 0xD08: "Cortex-A72", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse N1", 0xD40: "Neoverse V1",
    0xD49: "Neoverse N2", 0xD4F: "Neoverse V2",
}  # fmt: skip


def look() -> Iterator[Finding]:
    """The chip's name."""
    if sys.platform == "darwin":
        brand = macos.said("sysctl", "-n", "machdep.cpu.brand_string")
        found = macos.chip(brand, macos.said("sysctl", "-n", "sysctl.proc_translated"))
    else:
        name = processor(CPUINFO.read_text(encoding="utf-8", errors="replace")) if CPUINFO.is_file() else ""
        found = Finding("chip", True, name or "unknown", facts={"chip": name})
    cores = usable_cores()
    yield Finding(
        found.name, found.ok, f"{found.found}, {cores} cores", found.fix, facts={**found.facts, "cores": cores}
    )


def processor(cpuinfo: str) -> str:
    """The processor's name in the text of /proc/cpuinfo; maker and part where an aarch64 kernel names no model."""
    if named := _field(cpuinfo, "model name"):
        return named
    maker, part = _field(cpuinfo, "CPU implementer"), _field(cpuinfo, "CPU part")
    board = _field(cpuinfo, "Model") or _field(cpuinfo, "Hardware")
    if not maker:
        return board
    code, number = _hexadecimal(maker), _hexadecimal(part)
    core = _ARM_PARTS.get(number, "") if code == 0x41 else ""
    name = f"{_MAKERS.get(code, f'maker {maker}')} {core or f'part {part or chr(63)}'}"
    return f"{name} ({board})" if board else name


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> Iterator[Finding]:
    """All memory, what is free now where the system says it, and what the plan counts on."""
    total = total_memory()
    free = available(MEMINFO.read_text(encoding="utf-8", errors="replace")) if MEMINFO.is_file() else None
    facts = {"memory_bytes": total, "available_bytes": free, "plan_bytes": int(USABLE * total)}
    now = f", {free / GB:.1f} GB free now" if free is not None else ""
    found = f"{total / GB:.1f} GB{now}; a step may hold {USABLE * total / GB:.1f} GB"
    little = min(total if free is None else free, total) < LITTLE
    yield Finding("memory", not little, found, "close other programs, or take a machine with more", facts=facts)


def available(meminfo: str) -> int | None:
    """Bytes that /proc/meminfo calls available, None where it doesn't."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) << 10 if found else None


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(\S.*)$", text, re.MULTILINE)
    return " ".join(found[1].split())[:100] if found else ""


def _hexadecimal(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return -1
