"""Several processes as one trainer: what a policy may ask of the other ranks, whatever library carries it.

`SINGLE_PROCESS` is the group of one process and does nothing. Rank 0 leads, the others do their share of what it
broadcasts (`policy.py`). Collectives run in a thread of their own, so that a rank that died or froze ends the wait.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol, TypeVar

from sdpo_mlx.backends.distributed.heartbeat import Heartbeat, HeartbeatClient, HeartbeatServer
from sdpo_mlx.backends.distributed.serialization import decode, encode
from sdpo_mlx.core.errors import ConfigError, RankLostError, SdpoError

T = TypeVar("T")
POLL_SECONDS = 0.5  # how often a wait checks the heartbeat
GRACE_SECONDS = 2.0  # that the heartbeat has to find out why a collective failed
INTERRUPTED = "interrupted"
END = encode(["end", None])


class Collectives(Protocol):
    """What carries bytes and sums between ranks: mx.distributed or torch.distributed."""

    rank: int
    size: int
    leader: str  # the address at which the others reach rank 0
    backend: str

    def gather(self, own: bytes) -> list[bytes]:
        """Return every rank's bytes, in the order of the ranks, on every rank."""

    def broadcast(self, message: bytes) -> bytes:
        """Return rank 0's bytes on every rank; what the others pass is ignored."""

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sum over ranks of each array; equal bits on every rank.

        It returns when the sums are computed, not when they are queued on a device.
        """

    def abort(self) -> None:
        """Give up what still runs, after a rank was lost; called from another thread, and does not wait."""

    def close(self) -> None:
        """Leave in good order; all ranks do."""


class ProcessGroup:
    """The ranks of one run; a rank's calls must come in the same order on all ranks.

    `idle` is whether the other ranks wait for rank 0's next call.
    """

    rank, size, backend = 0, 1, ""
    idle = False

    def gather(self, own: bytes) -> list[bytes]:
        """Return every rank's bytes, in the order of the ranks."""
        return [own]

    def broadcast(self, message: bytes) -> bytes:
        """Return rank 0's bytes."""
        return message

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sum of each array over all ranks."""
        return dict(arrays)

    def send(self, message: bytes) -> None:
        """Send rank 0 a message that it reads when it likes."""

    def receive(self, *, block: bool) -> bytes | None:  # noqa: ARG002
        """On rank 0: return a message of another rank; None if there is none yet, or after half a second."""
        return None

    def together(self) -> AbstractContextManager[None]:
        """Run a block that every rank runs; raise what it raises, or what it raised on another rank.

        Raise KeyboardInterrupt on all ranks if one was interrupted.
        """
        return nullcontext()

    def close(self) -> None:
        """End the group."""


SINGLE_PROCESS = ProcessGroup()


class RankGroup(ProcessGroup):
    """More than one process, connected by collectives."""

    def __init__(self, collectives: Collectives) -> None:
        self.collectives, self.backend = collectives, collectives.backend
        self.rank, self.size = collectives.rank, collectives.size
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._heartbeat = Heartbeat()
        threading.Thread(target=self._run_calls, daemon=True).start()
        self._heartbeat = self._connected()

    def gather(self, own: bytes) -> list[bytes]:
        """See `ProcessGroup.gather`."""
        return self._call(lambda: self.collectives.gather(own))

    def broadcast(self, message: bytes) -> bytes:
        """See `ProcessGroup.broadcast`."""
        return self._call(lambda: self.collectives.broadcast(message))

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """See `ProcessGroup.total`."""
        return self._call(lambda: self.collectives.total(arrays))

    def send(self, message: bytes) -> None:
        """See `ProcessGroup.send`."""
        try:
            self._heartbeat.send(message)
        except OSError as error:
            raise RankLostError("rank 0", str(error)) from error

    def receive(self, *, block: bool) -> bytes | None:
        """See `ProcessGroup.receive`."""
        try:
            return self._heartbeat.messages.get(timeout=POLL_SECONDS if block else 0.0)
        except queue.Empty:
            self._check_heartbeat()
            return None

    @contextmanager
    def together(self) -> Iterator[None]:
        """See `ProcessGroup.together`."""
        status = ""
        fault: BaseException | None = None
        try:
            yield
        except KeyboardInterrupt as error:
            status, fault = INTERRUPTED, error
        except Exception as error:
            status = error.what if isinstance(error, SdpoError) else f"{type(error).__name__}: {error}"
            fault = error
        statuses = [decode(each)[0] for each in self.gather(encode(status))]
        if fault is not None:
            raise fault
        if INTERRUPTED in statuses:
            raise KeyboardInterrupt
        for rank, each in enumerate(statuses):
            if each:
                fix = "fix it there and run the same command again; it resumes from the last checkpoint"
                raise ConfigError(each, where=f"rank {rank}", fix=fix)

    def close(self) -> None:
        """See `ProcessGroup.close`; idle ranks receive the end."""
        with suppress(RankLostError):
            if self.idle and self.rank == 0:
                self.broadcast(END)
            if self.idle:
                self._call(self.collectives.close)
        self._heartbeat.close()

    def _run_calls(self) -> None:
        while True:
            collective, result = self._calls.get()
            try:
                result.set_result(collective())
            except Exception as error:
                result.set_exception(error)

    def _call(self, collective: Callable[[], T]) -> T:
        result: Future[T] = Future()
        self._calls.put((collective, result))
        while not wait([result], POLL_SECONDS).done:
            self._check_heartbeat()
        if error := result.exception():
            self._heartbeat.changed.wait(GRACE_SECONDS)
            self._check_heartbeat()
            raise RankLostError(self._heartbeat.lost or "another rank", str(error)) from error
        return result.result()

    def _check_heartbeat(self) -> None:
        """Raise RankLostError if another rank ended or was lost; what still waits for it is given up."""
        if not self._heartbeat.changed.is_set():
            return
        self.collectives.abort()
        if self._heartbeat.ended:
            raise RankLostError("rank 0" if self.rank else "another rank", "it ended", ended=True)
        if self._heartbeat.lost:
            raise RankLostError(self._heartbeat.lost, "no heartbeat")

    def _connected(self) -> Heartbeat:
        """Connect the heartbeats of rank 0 and each other rank."""
        try:
            server = HeartbeatServer(self.collectives.leader, self.size) if self.rank == 0 else None
            address = decode(self.broadcast(encode(server.address if server else None)))[0]
            if server is None:
                return HeartbeatClient(address, self.rank)
            server.accept_all()
        except OSError as error:
            raise ConfigError(
                f"the ranks cannot reach each other: {error}",
                where=self.collectives.leader,
                fix="allow connections to rank 0 on any port in the firewall of its machine",
            ) from error
        return server
