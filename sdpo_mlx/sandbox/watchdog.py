"""Watch the memory of a run if no kernel limit binds it.

macOS accepts RLIMIT_AS and does not hold it. `ps` is the one way to ask that every system has.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable


def watchdog(limit: int) -> Callable[[int], bool]:
    """For `launch`: whether the processes of the session that a process leads hold more than `limit` bytes."""
    return lambda leader: resident(leader) > limit


def resident(leader: int) -> int:
    """Return bytes in memory of all processes in the session of `leader`; 0 if it has ended or `ps` fails."""
    # -g means the session on Linux and the process group on macOS; whoever leads a session leads its group
    command = ["ps", "-o", "rss=", "-g", str(leader)]
    try:
        output = subprocess.run(command, capture_output=True, timeout=5.0, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(int(word) << 10 for word in output.split() if word.isdigit())
