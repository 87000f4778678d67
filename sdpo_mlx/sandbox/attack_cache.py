"""Remember that a sandbox refused the whole attack list, so that it is not run at every start.

The answer holds for one build of the system, one interpreter, one profile and one list; anything else asks again.
"""

from __future__ import annotations

import os
import plistlib
from collections.abc import Callable, Sequence
from pathlib import Path

from sdpo_mlx.core.machine_cache import read_cached, write_cached
from sdpo_mlx.sandbox import attacks
from sdpo_mlx.sandbox.attacks import Attack

SYSTEM_VERSION = Path("/System/Library/CoreServices/SystemVersion.plist")


def refused(described: Sequence[str], ask: Callable[[], list[Attack]]) -> dict[str, bool]:
    """Return whether each attack was refused, by `refused:NAME`, from the cache if all were.

    `described`: texts on which the answer depends, besides the system and the list. A cache that cannot be read or
    written is none.
    """
    known = [*described, system_build(), Path(attacks.__file__).read_text("utf-8")]
    names = read_cached("sandbox", known).get("refused")
    if isinstance(names, list) and names and all(isinstance(each, str) for each in names):
        return dict.fromkeys(names, True)
    found = {f"refused:{each.name}": each.refused is True for each in ask()}
    if found and all(found.values()):
        write_cached("sandbox", known, {"refused": list(found)})
    return found


def system_build() -> str:
    """Return the build of this macOS and of its kernel; the kernel's alone elsewhere."""
    try:
        build = str(plistlib.loads(SYSTEM_VERSION.read_bytes()).get("ProductBuildVersion", ""))
    except (OSError, ValueError, AttributeError, plistlib.InvalidFileException):
        build = ""
    return f"{build} {os.uname().version}"
