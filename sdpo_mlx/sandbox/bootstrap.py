"""The first code inside a sandbox: sets limits, drops privileges, then runs the program it is sent.

This file travels as text (`python -c`), so it stands alone: standard library only, nothing of ours.
On stdin come eight bytes (big-endian length), the program, and then the program's own input.
"""

from __future__ import annotations

import builtins
import os
import resource
import sys


def _limit(name: str, value: int) -> None:
    """Set one hard limit, or keep a lower one; a negative value leaves it alone."""
    if value < 0 or not hasattr(resource, name):
        return
    hard = resource.getrlimit(getattr(resource, name))[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(getattr(resource, name), (value, value))
    except (ValueError, OSError):
        if name != "RLIMIT_AS":  # macOS refuses this one; nowhere else may a limit be missing
            raise


def _read(count: int) -> bytes:
    """Return exactly so many bytes from fd 0, unbuffered: what follows belongs to the program."""
    parts = []
    while count:
        part = os.read(0, count)
        if not part:
            raise SystemExit("the program did not arrive whole")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _guard(filters: str) -> None:
    """Refuse kernel calls from here on, by the filter of this machine; `filters` are `NAME:BASE64`, by commas."""
    import binascii
    import ctypes

    known = dict(part.split(":") for part in filters.split(","))
    if os.uname().machine not in known:
        raise SystemExit(f"no list of kernel calls for {os.uname().machine}")
    code = binascii.a2b_base64(known[os.uname().machine])
    rules = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_void_p)]

    program = Program(len(code) // 8, ctypes.addressof(rules))
    prctl, word = ctypes.CDLL(None, use_errno=True).prctl, ctypes.c_ulong
    # PR_SET_NO_NEW_PRIVS, without which an ordinary user may set no filter; then PR_SET_SECCOMP, mode filter.
    if prctl(38, word(1), word(0), word(0), word(0)) or prctl(22, word(2), ctypes.byref(program), word(0), word(0)):
        raise SystemExit(f"the kernel takes no list of refused calls: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Arguments: uid (-1: stay), then memory, cpu seconds, file size, open files, processes; filters, if any."""
    uid, memory, cpu, file_size, files, processes = map(int, sys.argv[1:7])
    program = _read(int.from_bytes(_read(8), "big"))
    for name, value in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_CPU", cpu),
        ("RLIMIT_FSIZE", file_size),
        ("RLIMIT_NOFILE", files),
        ("RLIMIT_NPROC", processes),
        *((name, 0) for name in ("RLIMIT_MSGQUEUE", "RLIMIT_MEMLOCK", "RLIMIT_RTPRIO", "RLIMIT_NICE")),
        ("RLIMIT_SIGPENDING", 256),
        ("RLIMIT_AS", memory),
    ):
        _limit(name, value)
    if uid >= 0:  # a real change of user, because the process limit does not bind root
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if len(sys.argv) > 7:
        _guard(sys.argv[7])
    os.environ.clear()
    sys.argv[:] = ["program"]
    # Without `site` the interpreter lacks these two, and programs use them.
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
