"""Resources of all processes of a run, read from Linux's /proc.

Limits bind one process each, and empty files count against none: many small ones could still fill a machine.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def over(pid: int, *, memory: int, folder: str, entries: int) -> bool:
    """Return whether the processes below `pid` hold more than `memory` bytes, or their `folder` more than `entries`."""
    family = below(pid)
    if sum(map(resident, family)) > memory and sum(map(_share, family)) > memory:
        return True
    if not family:
        return False
    try:
        counts = os.statvfs(f"/proc/{family[-1]}/root{folder}")  # the file system that this process sees there
    except OSError:
        return False
    return counts.f_files - counts.f_ffree > entries


def below(pid: int) -> list[int]:
    """Return all descendants of a process at this moment, parents first, children of threads included."""
    family, waiting = [], [pid]
    while waiting:
        children: list[int] = []
        with contextlib.suppress(OSError):  # it has just ended
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                children += map(int, (task / "children").read_text("ascii").split())
        family += children
        waiting += children
    return family


def resident(pid: int) -> int:
    """Return bytes in memory, shared pages counted for each process; fast."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _share(pid: int) -> int:
    """Return bytes in memory and swap, shared pages divided by their users; what cannot be read counts whole."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return resident(pid)
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss:", "SwapPss:")))
