"""macOS containment with Seatbelt (`sandbox-exec -p`). Not yet tested on a Mac.

The profile (`seatbelt_profile.py`) denies by default; a program may read the interpreter, the standard library and
the system's own libraries, write into its work folder, and nothing else: no network, no services, no other process.
Address space is limited above what the process maps at its start; memory and the work folder are watched as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from sdpo_mlx.sandbox import attack_cache, seatbelt_profile
from sdpo_mlx.sandbox.attacks import attack_report
from sdpo_mlx.sandbox.base import RunResult
from sdpo_mlx.sandbox.launch import ENVIRONMENT, INTERPRETER_FLAGS, Limits, bootstrap, launch_spawned, payload
from sdpo_mlx.sandbox.mac_python import installed_python, kernel_path
from sdpo_mlx.sandbox.probe import MAC_CHECKS, Probe, probe
from sdpo_mlx.sandbox.seatbelt_profile import CLOSED, IMPORT, for_folder, profile
from sdpo_mlx.sandbox.watchdog import watchdog
from sdpo_mlx.sandbox.work_folder import left_behind, over, record, remove, work_folder

# Never by PATH: a file of that name in a project's `bin` could contain nothing after the self-test.
SANDBOX_EXEC = "/usr/bin/sandbox-exec"
OWNER = 0  # root
PS = "/bin/ps"
NOTHING = "/usr/bin/true"
_PROFILE_ERROR = 65  # EX_DATAERR: the profile names something that this macOS does not know
_SHORT_SECONDS = 5.0
_SOME_FOLDER = "/private/tmp/sdpo-run-0/work"  # stands for the work folder, which every run has anew
_GREEDY = """
import os, time
kept = [os.urandom(1 << 20) for _ in range({})]
time.sleep(2)
print('held')
"""


class SeatbeltSandbox:
    """Runs programs under `sandbox-exec`, each in its own folder."""

    kind = "seatbelt"

    def __init__(self, limits: Limits | None = None) -> None:
        """Raises FileNotFoundError if macOS has no `sandbox-exec`, ValueError for a path it cannot take."""
        if not os.access(SANDBOX_EXEC, os.X_OK) or Path(SANDBOX_EXEC).stat().st_uid != OWNER:
            raise FileNotFoundError(SANDBOX_EXEC)
        self.limits = limits or Limits()
        self._python = installed_python()
        with work_folder() as work:  # the real temporary folder, so that no run meets a path it cannot quote
            profile(self._python, kernel_path(work))
        imports = seatbelt_profile.DYLD_SUPPORT.is_file() and _accepted(f"(allow default)\n{IMPORT}")
        known = _accepted("\n".join(f"(deny {each})" for each in CLOSED))
        closed = CLOSED if known else tuple(each for each in CLOSED if _accepted(f"(deny {each})"))
        self._profile = profile(self._python, _SOME_FOLDER, imports=imports, closed=closed)
        self._found: Probe | None = None
        end_left_behind()

    def run(
        self, program: str, stdin: bytes = b"", *, seconds: float | None = None, memory_mb: int | None = None
    ) -> RunResult:
        """Run one program isolated from this machine; thread-safe."""
        seconds = self.limits.seconds if seconds is None else seconds
        limits = self.limits.with_memory(memory_mb)
        memory = watchdog(limits.memory_mb << 20)
        with work_folder() as folder:
            work = kernel_path(folder)
            text = for_folder(self._profile, _SOME_FOLDER, work)
            argv = [SANDBOX_EXEC, "-p", text, self._python.executables[0], *INTERPRETER_FLAGS, "-c", bootstrap()]
            argv += [*limits.arguments(seconds, count_processes=False), "", work]
            return launch_spawned(
                argv,
                payload(program, stdin),
                seconds,
                env=ENVIRONMENT,
                spawned=lambda group: record(folder, group),
                over=lambda leader: memory(leader) or over(folder),
            )

    def self_test(self) -> dict[str, bool]:
        """Return the results of checks that run inside the sandbox."""
        return self.probe().checks

    def probe(self) -> Probe:
        """Run the general checks, once for each object, and the attack list, once for each machine and Python.

        Forks are denied altogether. An attack list that was not refused as a whole is run again at the next start.
        """
        if self._found is None:
            found = probe(self, memory_mb=1, forks=1, checks=MAC_CHECKS)
            checks = {name: holds for name, holds in found.checks.items() if name != "memory_capped"}
            checks["memory_capped"] = all(checks.values()) and self._memory_is_held()
            if not found.message:
                checks |= attack_cache.refused(self._described(), lambda: attack_report(self))
            self._found = Probe(checks, found.message)
        return self._found

    @property
    def program(self) -> str:
        """The file name of the interpreter, as the system's log has it."""
        return Path(self._python.executables[0]).name

    def _described(self) -> list[str]:
        """Return what the attack list's answer depends on: this interpreter, and the profile without its folder."""
        executable = self._python.executables[0]
        return [executable, str(Path(executable).stat().st_mtime_ns), self._profile, *INTERPRETER_FLAGS, bootstrap()]

    def _memory_is_held(self) -> bool:
        greedy = _GREEDY.replace("{}", str(2 * self.limits.memory_mb))
        return b"held" not in self.run(greedy, seconds=20.0).stdout


def _accepted(rules: str) -> bool:
    """Return whether this macOS can read a profile; only the code for a faulty profile says no."""
    argv = [SANDBOX_EXEC, "-p", f"(version 1)\n(allow process-exec)\n{rules}\n", NOTHING]
    try:
        return launch_spawned(argv, b"", _SHORT_SECONDS).code != _PROFILE_ERROR
    except OSError:
        return True


def end_left_behind() -> None:
    """End programs of a trainer that was killed, and remove their folders.

    A process is ended only if its command line names that very folder: a number alone may be another's by now.
    """
    for outer, group in left_behind():
        if group > 1 and _names(group, outer):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        remove(outer)


def _names(pid: int, folder: Path) -> bool:
    argv = [PS, "-ww", "-o", "args=", "-p", str(pid)]
    try:
        return os.fsencode(folder.name) in launch_spawned(argv, b"", _SHORT_SECONDS).stdout
    except OSError:
        return False
