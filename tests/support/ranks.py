"""Ranks for tests: as real processes, started by hand or by a launcher, and as threads of this process."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from child_processes import ONE_THREAD, Child, sdpo_child
from requirements import needs_torch
from waiting import HANG_SECONDS

from sdpo_mlx.backends.distributed.process_group import RankGroup

TESTS = Path(__file__).parent
BACKENDS = ["mlx", pytest.param("torch", marks=needs_torch)]


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listened on a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def environments(backend: str, size: int, folder: Path) -> list[dict[str, str]]:
    """The environment variables that a launcher sets for each rank."""
    base = {**ONE_THREAD, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    if backend == "mlx":
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]), encoding="utf-8")
        return [{**base, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(size)]
    port = str(free_ports(1)[0])
    common = {**base, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def start_ranks(backend: str, size: int, folder: Path, words: Sequence[str]) -> list[Child]:
    """Start `sdpo` once per rank, rank 0 first."""
    return [sdpo_child(words, folder, environment) for environment in environments(backend, size, folder)]


def launcher(backend: str, size: int) -> list[str]:
    """The command that people start ranks with."""
    if backend == "mlx":
        code = "from mlx._distributed_utils.launch import main; main()"
        port = str(min(free_ports(1)[0], 60_000))
        return [sys.executable, "-c", code, "-n", str(size), "--starting-port", port, "--", sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]


class ThreadCollectives:
    """Collectives between threads of one process."""

    backend, leader = "mlx", "127.0.0.1"

    def __init__(self, rank: int, shelf: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.shelf, self.barrier = rank, len(shelf), shelf, barrier

    def gather(self, own: Any) -> list[Any]:
        self.barrier.wait()
        self.shelf[self.rank] = own
        self.barrier.wait()
        return list(self.shelf)

    def broadcast(self, message: bytes) -> bytes:
        return bytes(self.gather(message)[0])

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        rows = self.gather(dict(arrays))
        return {name: sum(row[name] for row in rows) for name in arrays}

    def abort(self) -> None:
        pass

    def close(self) -> None:
        self.gather(b"")


def on_threads(size: int, part: Callable[[RankGroup], Any]) -> list[Any]:
    """What `part` returned or raised on each rank."""
    shelf, barrier = [None] * size, threading.Barrier(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = part(RankGroup(ThreadCollectives(rank, shelf, barrier)))
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    return results
