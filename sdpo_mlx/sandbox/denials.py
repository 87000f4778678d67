"""What macOS wrote in its log about a program that Seatbelt ended: a program that dies in the loader says nothing."""

from __future__ import annotations

import platform
import re

from sdpo_mlx.sandbox.interpreter import python_build
from sdpo_mlx.sandbox.launch import launch_spawned

LOG = "/usr/bin/log"
CSRUTIL = "/usr/bin/csrutil"
_LOG_SECONDS = 20.0
_MOST = 3
_PREDICATE = 'processID == 0 AND senderImagePath CONTAINS "/Sandbox"'
_LINE = re.compile(r"Sandbox: (?P<program>[^()]+)\(\d+\) deny\(\d+\) (?P<operation>[\w*-]+) ?(?P<what>.*)")


def denials(log: str, programs: tuple[str, ...]) -> list[str]:
    """Return the first three different denials of these programs in a log, each as `OPERATION WHAT`."""
    found: dict[str, None] = {}
    for line in log.splitlines():
        match = _LINE.search(line)
        if match and match["program"] in programs:
            text = f"{match['operation']} {match['what']}".strip()
            found["".join(c for c in text if c.isprintable())[:200]] = None
    return list(found)[:_MOST]


def system_facts(program: str) -> str:
    """Return what a report of a dead start needs, in one line.

    That is the macOS version, the build of this Python, System Integrity Protection, and what the system's log says
    that the program was denied in the last minute.
    """
    log = _said(LOG, "show", "--last", "1m", "--style", "compact", "--predicate", _PREDICATE)
    denied = denials(log, (program, program[:16], "sandbox-exec"))  # the kernel cuts a process's name
    facts = {
        "macOS": platform.mac_ver()[0],
        "Python build:": python_build(),
        "integrity protection:": _said(CSRUTIL, "status").rpartition(":")[2].strip(" .\n"),
        "denied:": ", ".join(denied),
    }
    return "; ".join(f"{name} {value}" for name, value in facts.items() if value)


def _said(*argv: str) -> str:
    """Return what a system program prints; blank if it cannot be started."""
    try:
        return launch_spawned(list(argv), b"", _LOG_SECONDS).stdout.decode("utf-8", "replace")
    except OSError:
        return ""
