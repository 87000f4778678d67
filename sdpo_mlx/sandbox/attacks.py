"""Attacks that a sandbox must refuse, and the control that shows them to work without one.

Each is harmless where it succeeds: it reads, lists, connects and asks, and writes only into a planted folder. So the
same list runs unconfined on a user's machine, where an attack that fails as well proves nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdpo_mlx.sandbox.base import Sandbox
from sdpo_mlx.sandbox.spawn import Spawned
from sdpo_mlx.sandbox.work_folder import remove

_SECONDS = 10.0
_BEFORE = """
import ctypes, json, os, signal, socket, sys
W = json.load(sys.stdin)
MAC = sys.platform == "darwin"
libc = ctypes.CDLL(None, use_errno=True)

def read(path):
    with open(path, "rb") as file:
        return file.read(64) or True

def connected(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2.0)
        s.connect(address)
        return True

def arguments_and_environment(pid):
    if not MAC:
        return read_all(f"/proc/{pid}/environ")
    names, size = (ctypes.c_int * 3)(1, 49, pid), ctypes.c_size_t(1 << 18)  # CTL_KERN, KERN_PROCARGS2
    data = ctypes.create_string_buffer(1 << 18)
    if libc.sysctl(names, 3, data, ctypes.byref(size), None, 0):
        raise OSError(ctypes.get_errno(), "sysctl")
    return data.raw[:size.value]

def read_all(path):
    with open(path, "rb") as file:
        return file.read()

def service(name):
    port = ctypes.c_uint(0)
    own = ctypes.c_uint.in_dll(libc, "bootstrap_port")
    return libc.bootstrap_look_up(own, name, ctypes.byref(port)) == 0 and port.value != 0

def attack():
"""
_AFTER = """
try:
    got = attack()
except BaseException as error:
    got, fault = None, type(error).__name__
else:
    fault = ""
os.write(1, json.dumps({"achieved": bool(got), "fault": fault}).encode())
os._exit(0)
"""
_SERVICES = (
    "com.apple.SecurityServer",
    "com.apple.securityd.xpc",
    "com.apple.pasteboard.1",
    "com.apple.system.opendirectoryd.libinfo",
    "com.apple.coreservices.launchservicesd",
    "com.apple.tccd",
    "com.apple.windowserver.active",
    "com.apple.cfprefsd.agent",
    "com.apple.system.notification_center",
    "com.apple.logd",
)
_EVERYWHERE = {
    "list_home": "return os.listdir(W['home']) is not None",
    "read_file_in_home": "return read(W['home_file'])",
    "read_file_in_temporary_folder": "return read(W['file'])",
    "list_other_users": "return os.listdir(W['users']) is not None",
    "read_accounts": "return read('/etc/passwd')",
    "read_own_source": "return read(W['source'])",
    "write_outside": "return open(os.path.join(W['folder'], 'written'), 'w').write('x')",
    "link_outside_file": "os.link(W['file'], os.path.join(W['folder'], 'link')); return True",
    "rename_outside_file": "os.rename(W['movable'], W['movable'] + '.moved'); return True",
    "link_from_work_folder": """
        open('own', 'w').close()
        os.rename('own', os.path.join(W['folder'], 'own'))
        return True""",
    "execute_shell": "return os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', ':'], {}), 0)[1] == 0",
    "execute_shell_in_place": "os.execv('/bin/sh', ['sh', '-c', 'echo \\'{\"achieved\": true, \"fault\": \"\"}\\''])",
    "connect_tcp": "return connected(socket.AF_INET, ('127.0.0.1', W['port']))",
    "connect_unix_socket": "return connected(socket.AF_UNIX, W['socket'])",
    "look_up_host": "return socket.getaddrinfo('localhost', W['port'], socket.AF_INET, socket.SOCK_STREAM)",
    "read_environment_of_another_process": "return W['marker'].encode() in arguments_and_environment(W['pid'])",
    "see_another_process": "os.kill(W['pid'], 0); return True",
}
_MAC = {
    "fork": "pid = os.fork(); pid or os._exit(0); os.waitpid(pid, 0); return True",
    "bind_port": "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); return True",
    "list_processes": """
        proc = ctypes.CDLL('/usr/lib/libproc.dylib', use_errno=True)
        found = (ctypes.c_int * 4096)()
        size = proc.proc_listpids(1, 0, ctypes.byref(found), ctypes.sizeof(found))
        return size > 0 and W['pid'] in list(found)""",
    "path_of_another_process": """
        proc = ctypes.CDLL('/usr/lib/libproc.dylib', use_errno=True)
        return proc.proc_pidpath(W['pid'], ctypes.create_string_buffer(4096), 4096) > 0""",
    "shared_memory": """
        name = W['marker'][:20].encode()
        made = libc.shm_open(b'/' + name, 0x202, 0o600)
        return made >= 0 and libc.shm_unlink(b'/' + name) == 0""",
    "copy_outside_file": "return libc.clonefile(os.fsencode(W['file']), b'clone', 0) == 0",
    "list_volumes": "return os.listdir('/Volumes')",
    **{f"service {name}": f"return service({name.encode()!r})" for name in _SERVICES},
}


@dataclass(frozen=True)
class Attack:
    """How one attack ended: `refused` inside the sandbox, and whether it `works` unconfined (None: no answer)."""

    name: str
    refused: bool | None
    works: bool | None = None
    fault: str = ""


def attack_report(sandbox: Sandbox, control: Sandbox | None = None) -> list[Attack]:
    """Run the attack list in a sandbox and, if given, in `control`, which should contain nothing.

    A sandbox holds if `refused` is True everywhere. An attack whose `works` is not True proved nothing on this
    machine. An attack without an answer is neither. Raises OSError if nothing can be planted.
    """
    attacks = {**_EVERYWHERE, **(_MAC if sys.platform == "darwin" else {})}
    report = []
    for name, body in attacks.items():
        achieved, fault = _try(sandbox, body)
        works = None if control is None else _try(control, body)[0]
        report.append(Attack(name, None if achieved is None else not achieved, works, fault))
    return report


def _try(sandbox: Sandbox, body: str) -> tuple[bool | None, str]:
    """Return whether one attack succeeded (None: no answer) and what refused it."""
    with _planted() as world:
        result = sandbox.run(
            f"{_BEFORE}{textwrap.indent(textwrap.dedent(body), '    ')}\n{_AFTER}",
            json.dumps(world).encode(),
            seconds=_SECONDS,
        )
    try:
        answer = json.loads(result.stdout)
        return answer["achieved"] is True, str(answer["fault"])
    except (ValueError, KeyError, TypeError):
        return None, f"{result.status} {result.code}"


@contextmanager
def _planted() -> Iterator[dict[str, object]]:
    """Plant what the attacks look for: files, listeners and a process with a secret in its environment."""
    marker = f"sdpo{secrets.token_hex(12)}"
    folder = Path(tempfile.mkdtemp(prefix="sdpo-planted-")).resolve()
    with contextlib.ExitStack() as stack:
        stack.callback(remove, folder)
        for name in ("file", "movable"):
            (folder / name).write_text(marker, encoding="ascii")
        tcp, unix = stack.enter_context(socket.socket()), stack.enter_context(socket.socket(socket.AF_UNIX))
        tcp.bind(("127.0.0.1", 0))
        unix.bind(str(folder / "s"))
        tcp.listen()
        unix.listen()
        other = stack.enter_context(_other_process(marker))
        home = Path("~").expanduser()
        home_file = folder / "file"
        with contextlib.suppress(OSError):  # a home that nobody may write into
            home_file = Path(stack.enter_context(tempfile.NamedTemporaryFile(prefix=".sdpo-planted-", dir=home)).name)
        yield {
            "marker": marker,
            "home": str(home),
            "home_file": str(home_file),
            "users": "/Users" if sys.platform == "darwin" else "/home",
            "folder": str(folder),
            "file": str(folder / "file"),
            "movable": str(folder / "movable"),
            "source": __file__,
            "port": tcp.getsockname()[1],
            "socket": str(folder / "s"),
            "pid": other,
        }


@contextmanager
def _other_process(marker: str) -> Iterator[int]:
    """A process that waits for the end of its input, with a secret in its environment."""
    argv = [os.path.realpath(sys.executable), "-S", "-c", "import sys; print(1, flush=True); sys.stdin.read()"]
    with Spawned(argv, {"SDPO_SECRET": marker}) as process:
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()
            process.wait()
