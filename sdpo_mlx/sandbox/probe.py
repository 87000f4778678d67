"""The start-up self-test: tries from the inside what must be impossible."""

from __future__ import annotations

import json
import signal
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sdpo_mlx.sandbox import seccomp
from sdpo_mlx.sandbox.base import RunResult, Sandbox
from sdpo_mlx.sandbox.launch import last_line

CHECKS = (
    "home_invisible",
    "system_invisible",
    "network_unreachable",
    "environment_empty",
    "write_denied",
    "fork_capped",
    "memory_capped",
    "unprivileged",
    "descriptors_closed",
    "kernel_guarded",
)

# macOS has no list of kernel calls to refuse; the attack list asks for more there.
MAC_CHECKS = tuple(name for name in CHECKS if name != "kernel_guarded")
_SYSTEM = ("/etc/passwd", "/proc/self", "/sys/kernel", "/run", "/var")
_MAC_SYSTEM = ("/etc/passwd", "/private/var/db", "/Volumes", "/Library/Preferences")
_MAC_HIDDEN = ("/Users", "/Users/Shared")

# Kernel calls with arguments that only the filter answers with EPERM: a ring, a keyring's id, no namespace.
_CALLS = (("io_uring_setup", (1, 0)), ("keyctl", (0, -1, 0)), ("unshare", (0,)))
_PROGRAM = """
import json, os, socket, sys

def refused(action, *arguments):
    try:
        action(*arguments)
    except (OSError, MemoryError):
        return True
    return False

def connect(family, kind, address):
    with socket.socket(family, kind) as s:
        s.settimeout(1.0)
        s.connect(address)

def write(folder):
    with open(os.path.join(folder, "probe"), "w") as f:
        f.write("x")

def forks(limit):
    children = []
    try:
        for _ in range(limit):
            pid = os.fork()
            if pid == 0:
                signal_wait()
            children.append(pid)
    except OSError:
        pass
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return len(children)

def signal_wait():
    import time
    time.sleep(30)
    os._exit(0)

def visible(path):
    if not ask["by_reading"]:
        return os.path.exists(path)
    # A Mac may show that a parent of the interpreter exists; what matters is what is in it.
    return not refused(os.listdir, path) or not refused(lambda: open(path, "rb").close())

def descriptors():
    return [fd for fd in range(3, 256) if not refused(os.fstat, fd)]

def guarded():
    # Refused by the filter alone: everybody may do these, whatever the namespaces.
    if not sys.platform.startswith("linux"):
        return None
    if not refused(os.memfd_create, "probe") or not refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW):
        return False
    try:
        import ctypes
    except ImportError:  # a Python without libffi: then only these two are asked
        return True
    call = ctypes.CDLL(None, use_errno=True).syscall
    for number, arguments in ask["calls"].get(os.uname().machine, []):
        if call(number, *arguments) != -1 or ctypes.get_errno() != 1:
            return False
    return True

ask = json.load(sys.stdin)
outside = ["/", "/tmp", "/usr", "/usr/lib", "/dev", "/python", os.path.dirname(os.__file__)]
print(json.dumps({
    "home_invisible": not any(map(visible, ask["hidden"])),
    "system_invisible": not any(map(visible, ask["system"])),
    "descriptors_closed": not descriptors(),
    "kernel_guarded": guarded(),
    "network_unreachable": refused(connect, socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", ask["port"]))
        and refused(connect, socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 9)),
    "environment_empty": not os.environ,
    "write_denied": all(refused(write, folder) for folder in outside),
    "memory_capped": refused(bytearray, ask["memory"]),
    "unprivileged": os.geteuid() != 0,
    "fork_capped": forks(ask["forks"]) < ask["forks"],
}))
"""


@dataclass(frozen=True)
class Probe:
    """The result of each check, and the sandbox's error message if no program ran."""

    checks: dict[str, bool]
    message: str = ""


def probe(
    sandbox: Sandbox,
    *,
    memory_mb: int = 8_192,
    forks: int = 256,
    checks: tuple[str, ...] = CHECKS,
    hidden: tuple[str, ...] = ("/root", "/home"),
) -> Probe:
    """Run the self-test and keep the checks asked for; if the program returned nothing, all have failed.

    `hidden`: paths that must not exist inside, besides a file planted here, this module and a home folder.
    """
    mac = sandbox.kind == "seatbelt"
    with tempfile.NamedTemporaryFile(prefix="sdpo-canary-") as canary, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        home = str(Path("~").expanduser())
        ask = {
            "by_reading": mac,
            "system": _MAC_SYSTEM if mac else _SYSTEM,
            "hidden": [
                *(_MAC_HIDDEN if mac else hidden),
                canary.name,
                __file__,
                *([home] if home not in ("/", "~", "/root") else []),
            ],
            "port": listener.getsockname()[1],
            "memory": memory_mb << 20,
            "forks": forks,
            # By machine, because a container's may be another one than this.
            "calls": {
                machine: [(number, values) for name, values in _CALLS if (number := seccomp.DENIED[name][column])]
                for column, machine in enumerate(seccomp.MACHINES)
            },
        }
        result = sandbox.run(_PROGRAM, json.dumps(ask).encode(), seconds=20.0)
    try:
        answer = json.loads(result.stdout)
        return Probe({name: answer[name] is True for name in checks})
    except (ValueError, KeyError, TypeError):
        return Probe(dict.fromkeys(checks, False), ending(result))


def ending(result: RunResult) -> str:
    """Return in a few words why a run gave no answer: its last line, and the code or signal that ended it."""
    said = last_line(result.stderr)
    how: str = result.status
    if how in ("timeout", "output_limit"):
        return f"{said}, {how}" if said else f"it ended with {how}"
    if result.code < 0 or result.code > 128:
        number = -result.code if result.code < 0 else result.code - 128
        how = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    else:
        how = f"code {result.code}"
    return f"{said}, {how}" if said else f"it ended with {how}"


def runs(sandbox: Sandbox) -> bool:
    """True if a program runs and its output comes back."""
    return sandbox.run("print(6 * 7)", seconds=20.0).stdout.strip() == b"42"
