"""The start-up self-test: tries from the inside what must be impossible."""

from __future__ import annotations

import json
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sdpo_mlx.sandbox.base import Sandbox

CHECKS = (
    "home_invisible",
    "network_unreachable",
    "environment_empty",
    "write_denied",
    "fork_capped",
    "memory_capped",
    "unprivileged",
)

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

ask = json.load(sys.stdin)
outside = ["/", "/tmp", "/usr", "/usr/lib", "/dev", "/python", os.path.dirname(os.__file__)]
print(json.dumps({
    "home_invisible": not any(map(os.path.exists, ask["hidden"])),
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
    """What holds, by name, and what the mechanism said when nothing ran at all."""

    checks: dict[str, bool]
    said: str = ""


def probe(sandbox: Sandbox, *, memory_mb: int = 8_192, forks: int = 256) -> Probe:
    """Run the self-test; a program that did not come back holds nothing."""
    with tempfile.NamedTemporaryFile(prefix="sdpo-canary-") as canary, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        hidden = ["/etc/passwd", "/root", "/home", "/proc/self", canary.name, __file__]
        home = str(Path("~").expanduser())
        ask = {
            "hidden": hidden + ([home] if home not in ("/", "~") else []),
            "port": listener.getsockname()[1],
            "memory": memory_mb << 20,
            "forks": forks,
        }
        result = sandbox.run(_PROGRAM, json.dumps(ask).encode(), seconds=20.0)
    try:
        answer = json.loads(result.stdout)
        return Probe({name: answer[name] is True for name in CHECKS})
    except (ValueError, KeyError, TypeError):
        return Probe(dict.fromkeys(CHECKS, False), _last_line(result.stderr) or f"it ended with {result.status}")


def runs(sandbox: Sandbox) -> bool:
    """True when a program runs and its output comes back."""
    return sandbox.run("print(6 * 7)", seconds=20.0).stdout.strip() == b"42"


def _last_line(stderr: bytes) -> str:
    """The last line a mechanism wrote, capped: it ends up in a one-line error."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return "".join(c for c in lines[-1] if c.isprintable())[:200] if lines else ""
