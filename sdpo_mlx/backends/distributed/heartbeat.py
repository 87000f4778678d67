"""Whether the other ranks still run: a heartbeat beside the collectives, since a frozen rank closes no connection.

Each rank sends rank 0 a byte every two seconds and receives one in return. A connection that closes, or is silent for
`SILENCE` seconds, is a lost rank. An orderly end sends another byte, so that it is not taken for a loss.

The same connections carry messages to rank 0 that need no answer (finished rollouts): a collective would make every
rank wait for all.
"""

from __future__ import annotations

import hmac
import queue
import secrets
import socket
import threading
from contextlib import suppress

BEAT_SECONDS = 2.0
SILENCE = 30.0  # seconds; a Mac that swaps may suspend a thread for several of them
CLOSE_SECONDS = 2.0  # how long an end waits for the other side to read it
ALIVE, BYE, MESSAGE = b"\x01", b"\x02", b"\x03"
LENGTH = 8  # bytes of the length of a message
SECRET_BYTES = 16


class Heartbeat:
    """One rank's connections; `lost` is the rank that disappeared, `ended` is whether one ended in good order.

    `messages` are those received and not read yet.
    """

    def __init__(self) -> None:
        self.lost: str = ""
        self.ended = False
        self.changed = threading.Event()  # one of the two
        self.messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._connections: list[socket.socket] = []
        self._writing = threading.Lock()  # a beat must not split a message
        self._receivers: list[threading.Thread] = []
        self._closing = False

    def close(self) -> None:
        """Send the end, wait until it was read, and stop."""
        self._closing = True
        for each in self._connections:
            with suppress(OSError):
                self._write(each, BYE)
                each.shutdown(socket.SHUT_WR)
        # A socket closed over unread beats is reset, and a reset discards the end that was sent before it.
        for receiver in self._receivers:
            receiver.join(CLOSE_SECONDS)
        for each in self._connections:
            with suppress(OSError):
                each.close()

    def follow(self, connection: socket.socket, name: str) -> None:
        """Send and receive on a connection, each in a thread of its own."""
        connection.settimeout(SILENCE)
        self._connections.append(connection)
        threading.Thread(target=self._send, args=(connection,), daemon=True).start()
        self._receivers.append(threading.Thread(target=self._receive, args=(connection, name), daemon=True))
        self._receivers[-1].start()

    def send(self, message: bytes) -> None:
        """Send rank 0 a message; raise OSError if it cannot be reached."""
        for each in self._connections:
            self._write(each, MESSAGE + len(message).to_bytes(LENGTH, "little") + message)

    def _write(self, connection: socket.socket, given: bytes) -> None:
        with self._writing:
            connection.sendall(given)

    def _send(self, connection: socket.socket) -> None:
        pause = threading.Event()
        with suppress(OSError):
            while not self._closing:
                self._write(connection, ALIVE)
                pause.wait(BEAT_SECONDS)

    def _receive(self, connection: socket.socket, name: str) -> None:
        try:
            while received := connection.recv(1):
                if received == MESSAGE:
                    length = int.from_bytes(_read(connection, LENGTH), "little")
                    self.messages.put(_read(connection, length))
                if received == BYE:
                    self.ended = True
                    self.changed.set()
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_WR)  # the other side, which waits in `close`, reads to here
                    return
        except OSError:
            pass
        if not self._closing:
            self.lost = self.lost or name
            self.changed.set()


def _read(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes; raise OSError if the connection ends before."""
    found = bytearray()
    while len(found) < size:
        part = connection.recv(min(size - len(found), 2**20))
        if not part:
            raise ConnectionError("it closed within a message")
        found += part
    return bytes(found)


def _first_line(connection: socket.socket) -> bytes:
    """Return at most 64 bytes up to a newline, and leave what follows, which may be the first beats or the end."""
    line = b""
    while len(line) < 64 and not line.endswith(b"\n") and (byte := connection.recv(1)):
        line += byte
    return line


class HeartbeatServer(Heartbeat):
    """Rank 0's side: listens on a free port; `address` is the host, port and secret that a client needs."""

    def __init__(self, host: str, size: int) -> None:
        super().__init__()
        self._secret = secrets.token_hex(SECRET_BYTES)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family, backlog=size)
        self._size = size
        self.address = [host, self._server.getsockname()[1], self._secret]

    def accept_all(self) -> None:
        """Wait for all other ranks; raise OSError if one does not connect."""
        self._server.settimeout(SILENCE)
        while len(self._connections) < self._size - 1:
            connection, _ = self._server.accept()
            connection.settimeout(SILENCE)
            received = _first_line(connection).split()
            if len(received) == 2 and hmac.compare_digest(received[0], self._secret.encode()):
                self.follow(connection, f"rank {received[1].decode('ascii', 'replace')}")
            else:
                connection.close()
        self._server.close()


class HeartbeatClient(Heartbeat):
    """Another rank's side; raises OSError if rank 0 cannot be reached."""

    def __init__(self, address: list[object], rank: int) -> None:
        super().__init__()
        host, port, secret = address
        connection = socket.create_connection((str(host), int(str(port))), timeout=SILENCE)
        connection.sendall(f"{secret} {rank}\n".encode())
        self.follow(connection, "rank 0")
