"""The first code inside a sandbox: sets limits, drops privileges, then runs the program it is sent.

This file travels as text (`python -c`), so it stands alone: standard library only, nothing of ours.
On stdin come eight bytes (big-endian length), the program, and then the program's own input.
"""

from __future__ import annotations

import builtins
import os
import resource
import sys

STARTED = b"\0started\n"  # on stdout, before any line of a program: nobody else can write here first


def _limit(name: str, value: int) -> None:
    """Set one hard limit, or keep a lower one; a negative value leaves it alone."""
    if value < 0 or not hasattr(resource, name):
        return
    hard = resource.getrlimit(getattr(resource, name))[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(getattr(resource, name), (value, value))
    except (ValueError, OSError):
        if name != "RLIMIT_AS":  # nowhere else may a limit be missing
            raise
        _limit_above_map(value)


def _limit_above_map(value: int) -> None:
    """Limit address space to `value` bytes above the least that the kernel takes.

    macOS refuses a limit below the present map, which on Apple silicon is some 390 GiB from the start, and holds a
    higher one. The hard limit stays until the end: lowered once, it would end the search.
    """
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    low, high = 0, 1 << 46  # in bytes; more than any map
    while high - low > 1 << 20:
        middle = (low + high) // 2
        try:
            resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
            high = middle
        except (ValueError, OSError):
            low = middle
    try:
        resource.setrlimit(resource.RLIMIT_AS, (high + value, high + value))
    except (ValueError, OSError):  # macOS before 12; the watchdog holds the memory there
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _settle(folder: str, seconds: int) -> None:
    """Do what `posix_spawn` cannot, and end with the trainer: for systems where no namespace dies with it."""
    import _thread
    import signal
    import time

    os.chdir(folder)
    os.closerange(3, 1_024)
    parent = os.getppid()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        os._exit(1)

    _thread.start_new_thread(end_with_parent, ())
    signal.setitimer(signal.ITIMER_REAL, seconds + 3)  # a net, if the thread is stopped
    _silence_crash_reports()


def _silence_crash_reports() -> None:
    """Take macOS's crash reporter away from this process: each report costs seconds and may show a dialog."""
    if sys.platform == "darwin":
        try:
            import ctypes

            system = ctypes.CDLL(None)
            task = ctypes.c_uint.in_dll(system, "mach_task_self_")
            # EXC_MASK_CRASH and EXC_MASK_CORPSE_NOTIFY, no port, EXCEPTION_DEFAULT, no thread state
            system.task_set_exception_ports(task, (1 << 10) | (1 << 13), 0, 1, 0)
        except (ImportError, OSError, ValueError, AttributeError):
            pass  # a Python without libffi: reports are written


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
    """Arguments: uid (-1: stay), then memory, cpu seconds, file size, open files, processes, filters, work folder."""
    uid, memory, cpu, file_size, files, processes = map(int, sys.argv[1:7])
    program = _read(int.from_bytes(_read(8), "big"))
    if len(sys.argv) > 8:
        _settle(sys.argv[8], cpu)
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
    if sys.argv[7:8] and sys.argv[7]:
        _guard(sys.argv[7])
    os.environ.clear()
    sys.argv[:] = ["program"]
    # Without `site` the interpreter lacks these two, and programs use them.
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    os.write(1, STARTED)
    exec(compile(program, "<program>", "exec", dont_inherit=True), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
