"""Sandboxes for programs that a model wrote.

Threat statement. In scope: careless and reward-hacking programs; secrets, network, disk, memory and
process exhaustion. Out of scope: holes in the kernel; for those use a virtual machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from sdpo_mlx.core.errors import SandboxError


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


class NoSandbox:
    """In place of a sandbox where no program will run: running one is an error."""

    kind = "none"

    def run(
        self, program: str, stdin: bytes = b"", *, seconds: float | None = None, memory_mb: int | None = None
    ) -> RunResult:
        """Raise SandboxError."""
        del program, stdin, seconds, memory_mb
        raise SandboxError("no sandbox was opened, so no program runs", where="sandbox.kind")

    def self_test(self) -> dict[str, bool]:
        """Return no checks."""
        return {}
