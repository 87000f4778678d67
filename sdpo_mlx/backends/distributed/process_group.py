"""Several processes as one trainer: what a policy may ask of the other ranks, whatever engine carries it.

`ALONE` is the world of one process and does nothing. Rank 0 leads, the others do their share of what it says
(`distributed.py`). Every call to the engine runs in a thread of its own, so that a rank that died or froze ends
the wait instead of prolonging it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from sdpo_mlx.backends.distributed.heartbeat import Heartbeat, HeartbeatClient, HeartbeatServer
from sdpo_mlx.backends.distributed.serialization import decode, encode
from sdpo_mlx.core.errors import ConfigError, RankLostError, SdpoError

T = TypeVar("T")
GLANCE_SECONDS = 0.5  # how often a wait looks up for lost ranks
INTERRUPTED = "interrupted"
END = encode(["end", None])
GRACE = 2.0  # seconds that the heartbeat has to say why a collective failed


class Collectives(Protocol):
    """What carries bytes and sums between ranks: mx.distributed or torch.distributed."""

    rank: int
    size: int
    leader: str  # where the others reach rank 0
    backend: str

    def gather(self, own: bytes) -> list[bytes]:
        """Every rank's bytes, in the order of the ranks, on every rank."""

    def broadcast(self, said: bytes) -> bytes:
        """Rank 0's bytes, on every rank; what the others give is ignored."""

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The sum over ranks of each array; equal bits on every rank."""

    def close(self) -> None:
        """Part in good order; all ranks do."""


class ProcessGroup:
    """The ranks of one run; a rank's calls must come in the same order on all ranks.

    `quiet` says that the other ranks wait to hear what comes next.
    """

    rank, size, backend = 0, 1, ""
    quiet = False

    def gather(self, own: bytes) -> list[bytes]:
        """Every rank's bytes, in the order of the ranks."""
        return [own]

    def broadcast(self, said: bytes) -> bytes:
        """Rank 0's bytes."""
        return said

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The sum of each array over all ranks."""
        return dict(arrays)

    def together(self, part: Callable[[], T]) -> T:
        """This rank's part of something that all do; raises what it raises, and what another's part raised.

        Raises KeyboardInterrupt on all ranks where one was interrupted.
        """
        return part()

    def close(self) -> None:
        """Tell the others that this is the end."""


SINGLE_PROCESS = ProcessGroup()


class RankGroup(ProcessGroup):
    """More than one process on an engine."""

    def __init__(self, engine: Collectives) -> None:
        self.engine, self.rank, self.size, self.backend = engine, engine.rank, engine.size, engine.backend
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pulse = Heartbeat()
        threading.Thread(target=self._carry, daemon=True).start()
        self._pulse = self._connected()

    def gather(self, own: bytes) -> list[bytes]:
        """See `World.gather`."""
        return self._waited(lambda: self.engine.gather(own))

    def broadcast(self, said: bytes) -> bytes:
        """See `World.broadcast`."""
        return self._waited(lambda: self.engine.broadcast(said))

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """See `World.total`."""
        return self._waited(lambda: self.engine.total(arrays))

    def together(self, part: Callable[[], T]) -> T:
        """See `World.together`."""
        result, word = None, ""
        fault: BaseException | None = None
        try:
            result = part()
        except KeyboardInterrupt as error:
            word, fault = INTERRUPTED, error
        except Exception as error:
            word = error.what if isinstance(error, SdpoError) else f"{type(error).__name__}: {error}"
            fault = error
        words = [decode(each)[0] for each in self.gather(encode(word))]
        if fault is not None:
            raise fault
        if INTERRUPTED in words:
            raise KeyboardInterrupt
        for rank, said in enumerate(words):
            if said:
                raise ConfigError(said, where=f"rank {rank}", fix="mend it there; the run goes on from its last state")
        return result  # type: ignore[return-value]  # no fault: the part returned

    def close(self) -> None:
        """See `World.close`; a rank that waits to hear more hears the end."""
        with suppress(RankLostError):
            if self.quiet and self.rank == 0:
                self.broadcast(END)
            if self.quiet:
                self._waited(self.engine.close)
        self._pulse.close()

    def _carry(self) -> None:
        while True:
            self._calls.get()()

    def _waited(self, call: Callable[[], T]) -> T:
        done: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

        def carry() -> None:
            try:
                done.put((call(), None))
            except Exception as error:
                done.put((None, error))

        self._calls.put(carry)
        while True:
            try:
                result, error = done.get(timeout=GLANCE_SECONDS)
                break
            except queue.Empty:
                self._look()
        if error is not None:
            self._pulse.news.wait(GRACE)
            self._look()
            raise RankLostError(self._pulse.lost or "another rank", str(error)) from error
        return result  # type: ignore[return-value]  # no error: the call returned

    def _look(self) -> None:
        if self._pulse.ended:
            raise RankLostError("rank 0" if self.rank else "another rank", "it ended", ended=True)
        if self._pulse.lost:
            raise RankLostError(self._pulse.lost, "no sign of life")

    def _connected(self) -> Heartbeat:
        """Heartbeats between rank 0 and each other rank."""
        try:
            leader = HeartbeatServer(self.engine.leader, self.size) if self.rank == 0 else None
            ticket = decode(self.broadcast(encode(leader.ticket if leader else None)))[0]
            if leader is None:
                return HeartbeatClient(ticket, self.rank)
            leader.welcome()
        except OSError as error:
            fix = "let the ranks reach rank 0 on any port (the firewall of its machine)"
            raise ConfigError(
                f"the ranks cannot reach each other: {error}", where=self.engine.leader, fix=fix
            ) from error
        return leader
