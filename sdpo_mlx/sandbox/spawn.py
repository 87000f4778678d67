"""Start a process by `posix_spawn`, so that the trainer is never forked.

CPython forks on macOS. A fork of a process that has loaded Metal runs the frameworks' fork handlers in the child,
where some of them have been seen to spin for ever; and `subprocess` waits for that child without a clock.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import IO

_STEP_SECONDS = 0.005


class Spawned:
    """What `launch` uses of `subprocess.Popen`, for a process in a session or at least a group of its own.

    The folder stays the caller's, and only descriptors that are not closed by `exec` are inherited: the bootstrap
    changes the one and closes the others.
    """

    def __init__(self, argv: list[str], env: Mapping[str, str]) -> None:
        """Raises OSError if the program cannot be started."""
        inner, outer = [], []
        for end in (0, 1, 1):
            pair = os.pipe()
            inner.append(pair[end])
            outer.append(pair[1 - end])
        actions = [(os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in enumerate(inner)]
        try:
            self.pid = _spawn(argv, env, actions)
        except BaseException:
            for descriptor in outer:
                os.close(descriptor)
            raise
        finally:
            for descriptor in inner:
                os.close(descriptor)
        self.stdin: IO[bytes] = os.fdopen(outer[0], "wb", buffering=0)
        self.stdout: IO[bytes] = os.fdopen(outer[1], "rb", buffering=0)
        self.stderr: IO[bytes] = os.fdopen(outer[2], "rb", buffering=0)
        self.returncode: int | None = None
        self.usage: resource.struct_rusage | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        if self.returncode is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.returncode, self.usage = os.waitstatus_to_exitcode(status), used
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(_STEP_SECONDS)
        return code

    def kill(self) -> None:
        """Send SIGKILL to a process that has not been waited for."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def __enter__(self) -> Spawned:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()


def _spawn(argv: list[str], env: Mapping[str, str], actions: list[tuple[int, int, int]]) -> int:
    # Python ignores SIGPIPE and SIGXFSZ, and what is ignored stays so over `exec`.
    signals = (signal.SIGPIPE, signal.SIGXFSZ)
    try:
        return os.posix_spawn(argv[0], argv, env, file_actions=actions, setsid=True, setsigdef=signals)
    except NotImplementedError:  # a Python built for a macOS older than 10.15
        return os.posix_spawn(argv[0], argv, env, file_actions=actions, setpgroup=0, setsigdef=signals)
