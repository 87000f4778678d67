"""macOS containment with Seatbelt (`sandbox-exec -p`). Not yet tested on a Mac.

The profile denies by default; a program may read the interpreter, the standard library and the system's own
libraries, write into its work folder, and nothing else: no network, no services, no other process. Memory is
watched from the outside (`watchdog.py`), because macOS does not hold the limit of address space.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sdpo_mlx.sandbox.base import RunResult
from sdpo_mlx.sandbox.interpreter import find_interpreter
from sdpo_mlx.sandbox.launch import ENVIRONMENT, INTERPRETER_FLAGS, Limits, bootstrap, launch, payload
from sdpo_mlx.sandbox.probe import Probe, probe
from sdpo_mlx.sandbox.watchdog import watchdog

SYSTEM = ("/usr/lib", "/System/Library", "/System/Volumes/Preboot/Cryptexes/OS", "/private/var/db/dyld")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_GREEDY = "kept = [b'x' * (1 << 20) for _ in range({})]\nimport time\ntime.sleep(2)\nprint('held')"


@dataclass(frozen=True)
class Python:
    """Real paths of an interpreter: what may be executed, what may be read, and what inside of it may not."""

    executables: tuple[str, ...]
    readable: tuple[str, ...]
    hidden: tuple[str, ...] = ()


def quoted(path: str) -> str:
    """Return a path as a profile's text literal; raises ValueError for one that could mean anything else."""
    if not path.startswith("/") or not path.isprintable() or ".." in PurePosixPath(path).parts or path == "/":
        raise ValueError(f"no path for a sandbox profile: {path!r}")
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def profile(python: Python, work: str) -> str:
    """Return the Seatbelt profile for one run; later rules win, so the denials close it.

    All paths must be real ones: Seatbelt compares what the kernel resolved. Raises ValueError for a path
    that cannot be quoted.
    """
    readable = [*_all("subpath", (*SYSTEM, *python.readable)), *_all("literal", (*DEVICES, *python.executables))]
    rules = [
        "(version 1)",
        "(deny default)",
        _rule("allow process-exec", _all("literal", python.executables)),
        _rule("allow file-read*", readable),
        _rule("allow file-map-executable", readable),
        '(allow file-read-data file-read-metadata (literal "/"))',
        _rule("allow file-write-data", _all("literal", ("/dev/null",))),
        _rule("allow file-read* file-write*", _all("subpath", (work,))),
        "(allow sysctl-read)",
        "(allow signal process-info* (target self))",
    ]
    if python.hidden:
        rules.append(_rule("deny file-read* file-map-executable", _all("subpath", python.hidden)))
    closing = ("network*", "mach-lookup", "process-fork", "sysctl-write", "file-link", "file-mknod", "system-socket")
    return "\n".join([*rules, *(f"(deny {each})" for each in closing), ""])


def _all(matcher: str, paths: Iterable[str]) -> list[str]:
    return [f"({matcher} {quoted(path)})" for path in paths]


def _rule(action: str, matchers: list[str]) -> str:
    return f"({action} {' '.join(matchers)})"


def installed_python() -> Python:
    """Return the interpreter that runs this process; framework builds start a second program and load a library."""
    found = find_interpreter()
    base = Path(sys.base_prefix).resolve()
    program = base / "Resources/Python.app/Contents/MacOS/Python"
    libraries = [base / "Python", base / "Resources", *sorted((base / "lib").glob("libpython*.dylib"))]
    if found.libpython is not None:
        libraries.append(found.libpython)
    executables = [found.executable, *([program.resolve()] if program.exists() else [])]
    readable = [found.stdlib, *(each.resolve() for each in libraries if each.exists())]
    return Python(
        tuple(dict.fromkeys(map(str, executables))),
        tuple(dict.fromkeys(map(str, readable))),
        (str(found.stdlib / "site-packages"),),
    )


class SeatbeltSandbox:
    """Runs programs under `sandbox-exec`, each in its own temporary folder."""

    kind = "seatbelt"

    def __init__(self, limits: Limits | None = None) -> None:
        """Raises FileNotFoundError if `sandbox-exec` is not on the PATH, ValueError for a path it cannot take."""
        path = shutil.which("sandbox-exec")
        if path is None:
            raise FileNotFoundError("sandbox-exec")
        self.limits = limits or Limits()
        self._path, self._python = path, installed_python()
        profile(self._python, "/private/tmp")

    def run(self, program: str, stdin: bytes = b"", *, seconds: float | None = None) -> RunResult:
        """Run one program isolated from this machine; thread-safe."""
        seconds = self.limits.seconds if seconds is None else seconds
        with tempfile.TemporaryDirectory(prefix="sdpo-", ignore_cleanup_errors=True) as folder:
            work = str(Path(folder).resolve())
            argv = [self._path, "-p", profile(self._python, work), self._python.executables[0], *INTERPRETER_FLAGS]
            argv += ["-c", bootstrap(), *self.limits.arguments(seconds, count_processes=False)]
            over = watchdog(self.limits.memory_mb << 20)
            return launch(argv, payload(program, stdin), seconds, env=ENVIRONMENT, cwd=work, over=over)

    def self_test(self) -> dict[str, bool]:
        """Return the results of checks that run inside the sandbox."""
        return self.probe().checks

    def probe(self) -> Probe:
        """Run the general checks; forks are denied altogether, and the memory watchdog gets its own run."""
        found = probe(self, memory_mb=1, forks=1)
        others = all(holds for name, holds in found.checks.items() if name != "memory_capped")
        greedy = _GREEDY.replace("{}", str(2 * self.limits.memory_mb))
        held = others and b"held" not in self.run(greedy, seconds=20.0).stdout
        return Probe({**found.checks, "memory_capped": held}, found.message)
