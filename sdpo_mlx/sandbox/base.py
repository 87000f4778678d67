"""Sandboxes for programs that a model wrote.

Threat statement. In scope: careless and reward-hacking programs; secrets, network, disk, memory and
process exhaustion. Out of scope: holes in the kernel; for those use a virtual machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class RunResult:
    """The output of a run, capped, and how it ended; nothing in here can be trusted.

    `started` False: the mechanism ended, or was late, before the program's first line; all output is its own.
    """

    status: Literal["exited", "timeout", "output_limit", "signal"]
    code: int
    stdout: bytes
    stderr: bytes
    seconds: float
    started: bool = True


class Sandbox(Protocol):
    """Runs one Python program and returns its output."""

    kind: str

    def run(
        self, program: str, stdin: bytes = b"", *, seconds: float | None = None, memory_mb: int | None = None
    ) -> RunResult:
        """Run `program` (Python source) with `stdin`; thread-safe; never raises for what the program does.

        `seconds` and `memory_mb` replace the sandbox's own limits for this run.
        """

    def self_test(self) -> dict[str, bool]:
        """Return each check by name; if one is False, the sandbox must not be used."""
