"""Linux containment with bubblewrap (https://github.com/containers/bubblewrap, 0.8 or newer).

Every namespace is unshared; the root holds a bare Python and nothing else; the only writable place is
a small tmpfs. There is no /proc, no /etc, no home. `seccomp.py` takes away kernel calls, `usage.py` watches
what all processes of a run hold together.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from sdpo_mlx.core.errors import SandboxError
from sdpo_mlx.sandbox import seccomp, usage
from sdpo_mlx.sandbox.base import RunResult
from sdpo_mlx.sandbox.interpreter import HOME, find_interpreter, library_mounts
from sdpo_mlx.sandbox.launch import ENVIRONMENT, INTERPRETER_FLAGS, Limits, bootstrap, launch, payload
from sdpo_mlx.sandbox.probe import probe

BOX = "/box"  # the work folder inside
_FIRST_UID, _UIDS = 50_000, 10_000  # unused by people and by systemd's dynamic users
_TOGETHER = 2  # all processes of a run may hold this many times what one may
_ENTRIES = 4_096  # files and folders in the work folder, which has no limit of its own on their number
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


class BubblewrapSandbox:
    """Runs programs under `bwrap`; started by root, each run gets its own unprivileged user."""

    kind = "bubblewrap"

    def __init__(self, limits: Limits | None = None) -> None:
        """Raises FileNotFoundError if `bwrap` is not on the PATH, SandboxError on an unknown machine."""
        path = shutil.which("bwrap")
        if path is None:
            raise FileNotFoundError("bwrap")
        self._filter = _filter()
        self.limits = limits or Limits()
        self._as_root = os.geteuid() == 0
        self._uids = itertools.count(os.getpid() * 61)
        self._inside = find_interpreter().inside
        self._prefix = [path, *self._namespaces(), *self._root()]

    def run(
        self, program: str, stdin: bytes = b"", *, seconds: float | None = None, memory_mb: int | None = None
    ) -> RunResult:
        """Run one program isolated from this machine; thread-safe."""
        seconds = self.limits.seconds if seconds is None else seconds
        uid = _FIRST_UID + next(self._uids) % _UIDS if self._as_root else -1
        limits = self.limits.with_memory(memory_mb)
        python = [self._inside, *INTERPRETER_FLAGS, "-c", bootstrap(), *limits.arguments(seconds, uid)]
        with _readable(self._filter) as fd:
            argv = [*self._prefix, "--seccomp", str(fd), "--", *python]
            over = partial(_over, limits.memory_mb)
            return launch(argv, payload(program, stdin), seconds, pass_fds=(fd,), over=over)

    def self_test(self) -> dict[str, bool]:
        """Return the results of checks that run inside the sandbox."""
        return probe(self).checks

    def _namespaces(self) -> list[str]:
        """Isolation flags.

        A user namespace made by root maps root alone, and the process limit never binds root. So root
        makes none, keeps the two capabilities that changing the user takes, and the bootstrap loses them.
        """
        common = ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL", "--hostname", "box"]
        if not self._as_root:
            return ["--unshare-all", "--unshare-user", "--disable-userns", *common]
        spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        return [*spaces, *common, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]

    def _root(self) -> list[str]:
        """Return the mount tree, sealed read-only at the end."""
        interpreter = find_interpreter()
        # Made by name, because bwrap gives parents that it makes itself to their owner alone.
        folders = ("/usr", "/usr/lib", "/dev", HOME, f"{HOME}/bin", f"{HOME}/lib")
        arguments = [word for folder in folders for word in ("--perms", "0755", "--dir", folder)]
        arguments += [*library_mounts(), *interpreter.mounts()]
        for device in _DEVICES:
            arguments += ["--dev-bind", device, device]
        size = str(self.limits.file_mb << 20)
        arguments += ["--perms", "0777", "--size", size, "--tmpfs", BOX, "--chdir", BOX, "--remount-ro", "/"]
        for name, value in {**ENVIRONMENT, "LD_LIBRARY_PATH": f"{HOME}/lib"}.items():
            arguments += ["--setenv", name, value]
        return arguments


def _over(memory_mb: int, pid: int) -> bool:
    """Return whether all processes below `pid` use too much together; kernel limits bind one process each."""
    return usage.over(pid, memory=_TOGETHER * memory_mb << 20, folder=BOX, entries=_ENTRIES)


def _filter() -> bytes:
    """Return the seccomp filter for this machine."""
    machine = os.uname().machine
    for known in seccomp.MACHINES:
        if machine == known:
            return seccomp.program(known)
    raise SandboxError(
        f"no sandbox for model-written programs: no list of kernel calls for {machine}",
        where="sandbox.kind",
        fix=f"use {' or '.join(seccomp.MACHINES)}",
    )


@contextmanager
def _readable(data: bytes) -> Iterator[int]:
    """A pipe that holds `data`, which must fit in one: each run has its own, since reading empties it."""
    reader, writer = os.pipe()
    try:
        try:
            os.write(writer, data)
        finally:
            os.close(writer)
        yield reader
    finally:
        os.close(reader)
