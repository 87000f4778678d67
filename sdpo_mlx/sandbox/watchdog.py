"""Watch the memory of a run if no kernel limit binds it, without starting a process for the question.

On macOS the figure is `phys_footprint`, which counts compressed and swapped pages; the resident size does not, and a
program that fills pages with zeros holds far more than it shows.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from sdpo_mlx.sandbox import usage

_PROCESS_GROUP = 2  # PROC_PGRP_ONLY of sys/proc_info.h
_MOST_PROCESSES = 4_096
_PROC = Path("/proc/self/statm")


class _Usage(ctypes.Structure):  # struct rusage_info_v0 of sys/resource.h
    _fields_ = [
        ("uuid", ctypes.c_uint8 * 16),
        *((name, ctypes.c_uint64) for name in ("user", "system", "idle_wakeups", "interrupts", "pageins", "wired")),
        *((name, ctypes.c_uint64) for name in ("resident", "phys_footprint", "started", "ended")),
    ]


def watchdog(limit: int, measure: Callable[[int], int] | None = None) -> Callable[[int], bool]:
    """For `launch`: whether the processes of the group that a process leads hold more than `limit` bytes.

    What cannot be measured while it lives counts as too much.
    """

    def over(leader: int) -> bool:
        try:
            return (measure or footprint)(leader) > limit
        except ProcessLookupError:
            return False
        except (OSError, AttributeError, ValueError):
            return True

    return over


def footprint(leader: int) -> int:
    """Return bytes held by a process and those it started; 0 once it has ended. Raises OSError if it cannot be read."""
    if _PROC.exists():
        return sum(usage.resident(each) for each in (leader, *usage.below(leader)))
    return sum(_physical(each) for each in _group(leader))


def _group(leader: int) -> list[int]:
    """Return the processes of a group; the leader alone if the system does not tell."""
    found = (ctypes.c_int * _MOST_PROCESSES)()
    size = _libproc().proc_listpids(_PROCESS_GROUP, leader, ctypes.byref(found), ctypes.sizeof(found))
    return list(found[: size // ctypes.sizeof(ctypes.c_int)]) if size > 0 else [leader]


def _physical(pid: int) -> int:
    """Return the footprint of one process; 0 if it has ended. Raises OSError for any other failure."""
    held = _Usage()
    if _libproc().proc_pid_rusage(pid, 0, ctypes.byref(held)) != 0:
        code = ctypes.get_errno()
        if code == 3:  # ESRCH
            return 0
        raise OSError(code, os.strerror(code))
    return int(held.phys_footprint)


@cache
def _libproc() -> ctypes.CDLL:
    return ctypes.CDLL("/usr/lib/libproc.dylib", use_errno=True)
