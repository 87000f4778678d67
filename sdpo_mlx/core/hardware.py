"""Memory of this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError

CGROUP = Path("/sys/fs/cgroup/memory.max")
_UNITS = {"": 2**30, "b": 1, "g": 2**30, "gb": 2**30, "gib": 2**30, "m": 2**20, "mb": 2**20, "mib": 2**20}


def total_memory() -> int:
    """Return the bytes of memory: the machine's, or a container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(CGROUP.read_text()))
    except (OSError, ValueError):
        return total


def bytes_of(text: str, where: str = "--memory") -> int:
    """Parse `16GB`, `512 MB` or `24` (GB) into bytes; raises ConfigError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = found and _UNITS.get(found[2].lower())
    if not found or not unit or float(found[1]) <= 0:
        raise ConfigError(f"{text!r} is not an amount of memory", where=where, fix="write it as 16GB")
    return int(float(found[1]) * unit)


def amount_of(text: str | float, whole: int) -> int:
    """Return the bytes of `85%` of `whole` bytes, of `12GB`, or of a number (GB); raises ConfigError."""
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", str(text))
    if share is None:
        try:
            return bytes_of(str(text), "")
        except ConfigError as error:
            raise ConfigError(error.what, fix="write it as 85%, or as 12GB") from None
    if not 0 < float(share[1]) <= 100:
        raise ConfigError(f"{text!r} is not a share of the memory", fix="write it as 85%, or as 12GB")
    return int(whole * float(share[1]) / 100)
