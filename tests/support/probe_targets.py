"""What the attacks of `probes.py` are let loose on: things planted for them, and how harm to these shows."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from waiting import HANG_SECONDS

from sdpo_mlx.sandbox import seccomp

_EXTRA = {"capget": (125, 90)}  # wanted by an attack, not on the list


@dataclass
class World:
    """One attack's surroundings; `token` is what it must not get hold of."""

    folder: Path
    token: str
    victim: subprocess.Popen[bytes]
    tcp: tuple[socket.socket, ...]
    local: tuple[socket.socket, ...]
    udp: socket.socket
    home_key: Path
    packets: int = 0

    @property
    def ask(self) -> bytes:
        """The input of an attack: names and numbers, never the token."""
        machine = os.uname().machine
        column = seccomp.MACHINES.index(machine) if machine in seccomp.MACHINES else 0
        calls = {**seccomp.DENIED, **seccomp.INSPECTED, **_EXTRA}
        ports = [listener.getsockname()[1] for listener in self.tcp]
        known = {
            "folder": str(self.folder),
            "key": str(self.folder / "key"),
            "home_key": str(self.home_key),
            "canary": str(self.folder / "canary"),
            "victim_file": str(self.folder / "victim"),
            "victim": self.victim.pid,
            "tcp": ports[0],
            "tcp6": ports[1] if len(ports) > 1 else 9,
            "udp": self.udp.getsockname()[1],
            "unix": str(self.folder / "socket"),
            "abstract": self.folder.name,
            "packages": [sysconfig.get_path("purelib")],
            "library": str(next(Path("/usr").glob("lib*/**/libc.so.6"), Path("/lib/libc.so"))),
            "numbers": {name: numbers[column] for name, numbers in calls.items()},
        }
        return json.dumps(known).encode()

    def harm(self) -> list[str]:
        """What an attack has done that can be seen from here."""
        names = {path.name for path in self.folder.iterdir()}
        done = ["files changed"] if names != {"key", "canary", "victim", "socket"} else []
        done += ["canary changed"] if (self.folder / "canary").read_text() != "unharmed" else []
        done += ["process killed"] if self.victim.poll() is not None else []
        done += ["connected" for listener in (*self.tcp, *self.local) if _accepts(listener)]
        done += ["packet received"] if self.packets else []
        return done

    def answer(self) -> None:
        """Echo packets until the socket closes, and count them."""
        with suppress(OSError):
            while (received := self.udp.recvfrom(512))[1] is not None:
                self.packets += 1
                self.udp.sendto(*received)


@contextmanager
def world() -> Iterator[World]:
    """Plant everything, and take it away again."""
    folder = Path(tempfile.mkdtemp(prefix="sdpo-probed-"))
    token = "sk-" + secrets.token_hex(16)
    for name, text in (("key", token), ("canary", "unharmed"), ("victim", "x")):
        (folder / name).write_text(text)
    home_key = _home() / f".{folder.name}"
    home_key.write_text(token)
    victim = subprocess.Popen(["sleep", "120"], start_new_session=True, env={"SECRET": token})
    tcp = (_listener(socket.AF_INET, ("127.0.0.1", 0)), *_ipv6())
    local = tuple(_listener(socket.AF_UNIX, name) for name in (str(folder / "socket"), "\0" + folder.name))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    planted = World(folder, token, victim, tcp, local, udp, home_key)
    answering = threading.Thread(target=planted.answer, daemon=True)
    answering.start()
    try:
        yield planted
    finally:
        victim.kill()
        victim.wait()
        with suppress(OSError):
            udp.shutdown(socket.SHUT_RDWR)
        for each in (*tcp, *local, udp):
            each.close()
        answering.join(HANG_SECONDS)
        home_key.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _home() -> Path:
    """The home folder, or where one cannot write there, the temporary one."""
    home = Path("~").expanduser()
    return home if os.access(home, os.W_OK) else Path(tempfile.gettempdir())


def _listener(family: int, address: tuple[str, int] | str) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen()
    listener.setblocking(False)
    return listener


def _ipv6() -> tuple[socket.socket, ...]:
    try:
        return (_listener(socket.AF_INET6, ("::1", 0)),)  # type: ignore[arg-type]
    except OSError:
        return ()


def _accepts(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def survivors(mark: bytes, patience: float = 60.0) -> list[int]:
    """Processes whose command line holds `mark`, after the kernel had its moment to bury them."""
    end = time.monotonic() + patience
    while (alive := [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if _holds(p, mark)]) and (
        time.monotonic() < end
    ):
        time.sleep(0.02)
    return alive


def _holds(cmdline: Path, mark: bytes) -> bool:
    try:
        return mark in cmdline.read_bytes()
    except OSError:
        return False


def unconfined(program: str, ask: bytes, folder: Path) -> bytes:
    """What the same attack says when nothing holds it: a plain Python that has inherited a descriptor."""
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=ask,
            capture_output=True,
            cwd=folder,
            pass_fds=(reader,),
            timeout=HANG_SECONDS,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
    return done.stdout
