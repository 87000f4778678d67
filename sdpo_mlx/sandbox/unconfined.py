"""No containment: limits and caps only, for people who ask for it by name.

A program can read this user's files, reach the network and leave processes behind.
"""

from __future__ import annotations

import sys

from sdpo_mlx.sandbox.base import RunResult
from sdpo_mlx.sandbox.interpreter import find_interpreter
from sdpo_mlx.sandbox.launch import ENVIRONMENT, INTERPRETER_FLAGS, Limits, bootstrap, launch, launch_spawned, payload
from sdpo_mlx.sandbox.probe import runs
from sdpo_mlx.sandbox.watchdog import watchdog
from sdpo_mlx.sandbox.work_folder import work_folder


class UnconfinedSandbox:
    """A plain subprocess in a temporary folder; without a process limit, which counts all processes of the user."""

    kind = "unconfined"

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._executable = str(find_interpreter().executable)

    def run(
        self, program: str, stdin: bytes = b"", *, seconds: float | None = None, memory_mb: int | None = None
    ) -> RunResult:
        """Run one program as this user; thread-safe."""
        seconds = self.limits.seconds if seconds is None else seconds
        limits = self.limits.with_memory(memory_mb)
        arguments = limits.arguments(seconds, count_processes=False)
        argv = [self._executable, *INTERPRETER_FLAGS, "-c", bootstrap(), *arguments]
        text = payload(program, stdin)
        with work_folder() as work:
            if sys.platform != "darwin":
                return launch(argv, text, seconds, env=ENVIRONMENT, cwd=str(work))
            argv += ["", str(work)]
            # no fork of this process on macOS, and the limit of address space is no sure one there
            over = watchdog(limits.memory_mb << 20)
            return launch_spawned(argv, text, seconds, env=ENVIRONMENT, over=over)

    def self_test(self) -> dict[str, bool]:
        """Return only that programs run at all: nothing else is promised here."""
        return {"runs": runs(self)}
