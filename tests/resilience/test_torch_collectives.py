"""Sums of tensors on a card, with stand-ins for CUDA: what waits for a lost rank ends, and receives signals."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from ranks import ThreadCollectives, on_threads
from requirements import needs_torch
from waiting import wait_until

from sdpo_mlx.backends.distributed.process_group import RankGroup
from sdpo_mlx.core.errors import RankLostError
from sdpo_mlx.core.interrupt import Interrupt

pytestmark = needs_torch


class Pending:
    """Work on a card, done as soon as `done` returns True; `wait` on it would block inside CUDA."""

    def __init__(self, done: Callable[[], bool]) -> None:
        self.is_completed = self.query = done

    def record(self) -> None:
        pass

    def wait(self) -> None:
        assert self.is_completed(), "waited inside CUDA"


def never() -> bool:
    return False


@pytest.fixture
def on_card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that returns the collectives of a rank whose tensors seem to be on a card, and the calls made."""
    import torch
    import torch.distributed as dist

    from sdpo_mlx.backends.torch import collectives

    calls: list[str] = []

    def make(done: Callable[[], bool]) -> tuple[Any, list[str]]:
        def all_reduce(tensor: Any, async_op: bool = False) -> Any:
            calls.append("nccl" if async_op else "gloo")
            tensor.mul_(2)
            return Pending(done) if async_op else None

        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "Event", lambda: Pending(done))
        monkeypatch.setattr(collectives, "pinned", torch.empty_like)
        monkeypatch.setattr(collectives, "on_host", lambda tensor: False)
        found = object.__new__(collectives.TorchCollectives)
        found.card, found._aborted = None, threading.Event()
        return found, calls

    return make


@pytest.mark.parametrize(("limit", "carrier"), [(2**30, "gloo"), (0, "nccl")])
def test_sum_on_a_card_goes_through_gloo_unless_it_is_large(
    limit: int, carrier: str, on_card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from sdpo_mlx.backends.torch import collectives

    monkeypatch.setattr(collectives, "GLOO_BYTES", limit)
    left = iter([False, False])
    own, calls = on_card(lambda: next(left, True))
    given = {"a": torch.ones(2, 3), "b": torch.full((4,), 3.0)}
    found = own.total(given)
    assert calls == [carrier]
    assert {name: array.tolist() for name, array in found.items()} == {"a": [[2.0] * 3] * 2, "b": [6.0] * 4}
    assert float(given["a"].sum()) == 6.0  # what is saved after a loss was not overwritten


@pytest.mark.parametrize("limit", [2**30, 0])
def test_lost_rank_ends_a_sum_that_never_completes_and_signals_arrive_meanwhile(
    limit: int, on_card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from sdpo_mlx.backends.torch import collectives

    monkeypatch.setattr(collectives, "GLOO_BYTES", limit)
    own, _ = on_card(never)
    groups = connected(own)
    with Interrupt() as interrupt:

        def lose() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(interrupt.requested)  # the main thread received it while it waited for the sum
            for line in groups[1]._heartbeat._connections:
                line.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=lose, daemon=True).start()
        with pytest.raises(RankLostError, match="rank 1 was lost"):
            groups[0].total({"a": torch.ones(3)})
    ended = threading.Event()
    groups[0]._calls.put((ended.set, Future()))  # the thread that carried the sum is free again
    wait_until(ended.is_set)


def connected(own: Any) -> list[RankGroup]:
    """Two ranks in this process; rank 0's sums and aborts are those of `own`."""
    groups: list[RankGroup] = on_threads(2, lambda group: group)
    carrier: ThreadCollectives = groups[0].collectives  # type: ignore[assignment]
    carrier.total, carrier.abort = own.total, own.abort  # type: ignore[method-assign]
    return groups
