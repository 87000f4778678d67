"""Where model-written programs run.

Threat statement. In scope: careless and reward-hacking programs; secrets, network, disk, memory and
process exhaustion. Out of scope: holes in the kernel; for those use a virtual machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class RunResult:
    """What came back: capped bytes and how it ended; nothing in here is a verdict."""

    status: Literal["exited", "timeout", "output_limit", "signal"]
    code: int
    stdout: bytes
    stderr: bytes
    seconds: float


class Sandbox(Protocol):
    """A place that runs one Python program and gives back its output."""

    kind: str

    def run(self, program: str, stdin: bytes = b"", *, seconds: float | None = None) -> RunResult:
        """Run `program` (Python source) with `stdin`; thread-safe; never raises for what the program does."""

    def self_test(self) -> dict[str, bool]:
        """What holds here, by name; a False means that the sandbox must not be used."""
