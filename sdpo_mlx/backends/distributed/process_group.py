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
from typing import Any, NoReturn, Protocol, TypeVar

from sdpo_mlx.backends.distributed.heartbeat import Heartbeat, HeartbeatClient, HeartbeatServer
from sdpo_mlx.backends.distributed.serialization import decode, encode
from sdpo_mlx.core.errors import ConfigError, RankLostError, SdpoError

T = TypeVar("T")
POLL_SECONDS = 0.5  # how often a wait checks the heartbeat
GRACE_SECONDS = 2.0  # that the heartbeat has to find out why a collective failed
INTERRUPTED = "interrupted"
# Passes of a model whose weights are split over the ranks, in the order in which ranks that want different ones run.
FORWARD, GRADIENT = "forward", "gradient"
END = encode(["end", None])


class PassError(Exception):
    """A pass that needs all ranks failed on this one: it cannot be run again, since the others wait within it."""


def _within_pass(fault: BaseException | None) -> bool:
    """Whether a fault may come from a pass; interrupts, and our own errors without a cause, are raised between two."""
    return isinstance(fault, Exception) and not (isinstance(fault, SdpoError) and fault.__cause__ is None)


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
    join: Callable[[str], None] | None = None  # see `run_passes_together`

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

    def run_passes_together(self, join: Callable[[str], None]) -> None:
        """From here on every pass needs all ranks; `join` runs an empty pass of a kind."""

    def meet(self, kind: str) -> None:
        """Before a pass that needs all ranks: wait until they run or join one of this kind, and join theirs before.

        Inside `together` only. Raise what another rank raised, which leaves.
        """

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
        self._passing = False  # whether other ranks may wait for this one within a pass
        self._over = False  # whether all ranks left `together` by a fault
        self._failed = False
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
        """See `ProcessGroup.together`; a rank that is done joins the passes of the others."""
        status = ""
        fault: BaseException | None = None
        self._over = False
        try:
            yield
        except KeyboardInterrupt as error:
            status, fault = INTERRUPTED, error
        except Exception as error:
            status = error.what if isinstance(error, SdpoError) else f"{type(error).__name__}: {error}"
            fault = error
        if fault is not None and self._over:  # of another rank, which all have received
            raise fault
        if self._passing and _within_pass(fault):
            self._fail(fault)
        while (kind := self._exchange("", status)) and fault is None:
            self._joined(kind)
        self._passing = False
        if fault is not None:
            raise fault

    def run_passes_together(self, join: Callable[[str], None]) -> None:
        """See `ProcessGroup.run_passes_together`; a pass that waits for a lost rank is given up."""

        def watch() -> None:
            self._heartbeat.changed.wait()
            if self._heartbeat.lost:
                self.collectives.abort()

        self.join = join
        threading.Thread(target=watch, daemon=True).start()

    def meet(self, kind: str) -> None:
        """See `ProcessGroup.meet`."""
        self._passing = False
        while (first := self._exchange(kind)) != kind:
            self._joined(first)
        self._passing = True

    def _exchange(self, kind: str, fault: str = "") -> str:
        """Return the kind of pass that comes first on any rank, blank if none; raise another rank's fault."""
        received = [decode(each)[0] for each in self.gather(encode([kind, fault]))]
        faults = [(rank, each) for rank, (_, each) in enumerate(received) if each]
        self._over = bool(faults)
        if faults and not fault:
            if INTERRUPTED in (each for _, each in faults):
                raise KeyboardInterrupt
            fix = "fix it there and run the same command again; it resumes from the last checkpoint"
            raise ConfigError(faults[0][1], where=f"rank {faults[0][0]}", fix=fix)
        return min((each for each, _ in received if each), default="")

    def _joined(self, kind: str) -> None:
        assert self.join is not None
        try:
            self.join(kind)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException | None) -> NoReturn:
        """Leave after an error within a pass, in which the other ranks wait for this one: it is lost to them."""
        self._heartbeat.changed.wait(GRACE_SECONDS)
        self._check_heartbeat()  # or another one was lost, which is why the pass failed
        self._failed = True
        self.collectives.abort()
        what = "" if isinstance(error, PassError) else f"{type(error).__name__}: "
        raise RankLostError(f"rank {self.rank}", what + " ".join(str(error).split())) from error

    def close(self) -> None:
        """See `ProcessGroup.close`; idle ranks receive the end."""
        if self._failed:
            return  # the connections end with the process: the others lose this rank
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
