"""Ranks on mx.distributed, as `mlx.launch` starts them: a ring over TCP or Thunderbolt, or JACCL."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt


class MLXCollectives:
    """See `Collectives`. The collectives have a stream of their own, so that a stuck one holds up nothing else."""

    backend = "mlx"

    def __init__(self) -> None:
        self.group = mx.distributed.init(strict=True)
        self.rank, self.size, self.leader = self.group.rank(), self.group.size(), _leader()
        self._stream: mx.Stream | None = None

    def gather(self, own: bytes) -> list[bytes]:
        """See `Collectives.gather`."""
        counts = self._run(mx.distributed.all_gather, np.array([len(own)], np.int32))
        width = max(1, int(counts.max()))  # a collective of nothing hangs
        padded = np.zeros(width, np.uint8)
        padded[: len(own)] = np.frombuffer(own, np.uint8)
        rows = self._run(mx.distributed.all_gather, padded).reshape(self.size, width)
        return [row[: int(count)].tobytes() for row, count in zip(rows, counts, strict=True)]

    def broadcast(self, message: bytes) -> bytes:
        """See `Collectives.broadcast`: a sum to which only rank 0 adds something."""
        own = np.frombuffer(message if self.rank == 0 else b"", np.uint8)
        count = int(self._run(mx.distributed.all_sum, np.array([own.size], np.int32))[0])
        buffer = np.zeros(max(1, count), np.uint8)
        buffer[: own.size] = own
        return self._run(mx.distributed.all_sum, buffer)[:count].tobytes()

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """See `Collectives.total`: one sum over all arrays, in float32."""
        names, own = list(arrays), {name: np.array(array.astype(mx.float32)) for name, array in arrays.items()}
        flat = self._run(mx.distributed.all_sum, np.concatenate([own[name].reshape(-1) for name in names]))
        ends = np.cumsum([own[name].size for name in names])[:-1]
        parts = zip(names, np.split(flat, ends), strict=True)
        return {name: mx.array(part.reshape(own[name].shape)).astype(arrays[name].dtype) for name, part in parts}

    def abort(self) -> None:
        """See `Collectives.abort`: mx.distributed has no such call, and what is stuck runs on a stream of its own."""

    def close(self) -> None:
        """See `Collectives.close`: no rank closes its connection before all are here."""
        self._run(mx.distributed.all_sum, np.ones(1, np.int32))

    def _run(self, collective: Any, own: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._stream is None:  # streams belong to the thread that made them
            self._stream = mx.new_stream(mx.cpu)
        with mx.stream(self._stream):
            found = collective(mx.array(own), group=self.group, stream=self._stream)
            mx.eval(found)
            return np.array(found)


def _leader() -> str:
    """The address of rank 0, from the launcher's environment variables."""
    if coordinator := os.environ.get("MLX_JACCL_COORDINATOR"):
        return coordinator.rpartition(":")[0].strip("[]")
    hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text(encoding="utf-8"))
    return str(hosts[0][0]).rpartition(":")[0].strip("[]")
