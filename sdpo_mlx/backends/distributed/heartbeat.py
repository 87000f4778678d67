"""Whether the other ranks are still there: a heartbeat beside the engine, since a frozen rank closes no connection.

Each rank sends rank 0 a byte every two seconds and gets one back. A connection that closes, or says nothing for
`SILENCE` seconds, is a lost rank. The last byte of an orderly end is another one, so that an end is no loss.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
from contextlib import suppress

BEAT_SECONDS = 2.0
SILENCE = 30.0  # seconds; a Mac that swaps may keep a thread waiting for some of them
ALIVE, BYE = b"\x01", b"\x02"
SECRET_BYTES = 16


class Heartbeat:
    """One rank's heartbeats; `lost` names the rank that went away, `ended` says that one said good-bye."""

    def __init__(self) -> None:
        self.lost: str = ""
        self.ended = False
        self.news = threading.Event()  # one of the two
        self._sockets: list[socket.socket] = []
        self._closing = False

    def close(self) -> None:
        """Say good-bye and stop."""
        self._closing = True
        for each in self._sockets:
            with suppress(OSError):
                each.sendall(BYE)
            with suppress(OSError):
                each.close()

    def follow(self, line: socket.socket, name: str) -> None:
        """Beat on a connection and listen to it, each in a thread of its own."""
        line.settimeout(SILENCE)
        self._sockets.append(line)
        threading.Thread(target=self._beat, args=(line,), daemon=True).start()
        threading.Thread(target=self._listen, args=(line, name), daemon=True).start()

    def _beat(self, line: socket.socket) -> None:
        pause = threading.Event()
        with suppress(OSError):
            while not self._closing:
                line.sendall(ALIVE)
                pause.wait(BEAT_SECONDS)

    def _listen(self, line: socket.socket, name: str) -> None:
        try:
            while said := line.recv(64):
                if BYE in said:
                    self.ended = True
                    self.news.set()
                    return
        except OSError:
            pass
        if not self._closing:
            self.lost = self.lost or name
            self.news.set()


class HeartbeatServer(Heartbeat):
    """Rank 0's side: listens at an address that the others can reach; `ticket` is what they need to find it."""

    def __init__(self, host: str, size: int) -> None:
        super().__init__()
        self._secret = secrets.token_hex(SECRET_BYTES)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family, backlog=size)
        self._size = size
        self.ticket = [host, self._server.getsockname()[1], self._secret]

    def welcome(self) -> None:
        """Wait for all others; raises OSError where one does not come."""
        self._server.settimeout(SILENCE)
        while len(self._sockets) < self._size - 1:
            line, _ = self._server.accept()
            line.settimeout(SILENCE)
            said = line.makefile("r", encoding="ascii", errors="replace").readline(64).split()
            if len(said) == 2 and hmac.compare_digest(said[0].encode(), self._secret.encode()):
                self.follow(line, f"rank {said[1]}")
            else:
                line.close()
        self._server.close()


class HeartbeatClient(Heartbeat):
    """Another rank's side; raises OSError where rank 0 cannot be reached."""

    def __init__(self, ticket: list[object], rank: int) -> None:
        super().__init__()
        host, port, secret = ticket
        line = socket.create_connection((str(host), int(str(port))), timeout=SILENCE)
        line.sendall(f"{secret} {rank}\n".encode())
        self.follow(line, "rank 0")
