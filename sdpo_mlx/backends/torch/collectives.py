"""Ranks on torch.distributed, as `torchrun` starts them: gloo, and NCCL for tensors on GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

LONGEST = timedelta(days=2)  # the heartbeat detects a lost rank; a long rollout is no fault


class TorchCollectives:
    """See `Collectives`."""

    backend = "torch"

    def __init__(self) -> None:
        cards = torch.cuda.is_available()
        if cards:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if cards and dist.is_nccl_available() else "gloo", timeout=LONGEST)
        self.rank, self.size, self.leader = dist.get_rank(), dist.get_world_size(), os.environ["MASTER_ADDR"]
        self.card = torch.cuda.current_device() if cards else None

    def gather(self, own: bytes) -> list[bytes]:
        """See `Collectives.gather`."""
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(own)]))
        width = max(1, *(int(count) for count in counts))
        rows = [torch.zeros(width, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(rows, _tensor(own, width))
        return [row[: int(count)].numpy().tobytes() for row, count in zip(rows, counts, strict=True)]

    def broadcast(self, message: bytes) -> bytes:
        """See `Collectives.broadcast`."""
        count = torch.tensor([len(message)])
        dist.broadcast(count, src=0)
        buffer = _tensor(message, int(count)) if self.rank == 0 else torch.zeros(int(count), dtype=torch.uint8)
        dist.broadcast(buffer, src=0)
        return buffer.numpy().tobytes()

    def total(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """See `Collectives.total`: one sum over all arrays, in float32."""
        if self.card is not None:  # CUDA's current device is per thread
            torch.cuda.set_device(self.card)
        flat = torch.cat([array.float().reshape(-1) for array in arrays.values()])
        dist.all_reduce(flat)
        parts = flat.split([array.numel() for array in arrays.values()])
        return {
            name: part.reshape(array.shape).to(array.dtype)
            for (name, array), part in zip(arrays.items(), parts, strict=True)
        }

    def close(self) -> None:
        """See `Collectives.close`."""
        dist.destroy_process_group()


def _tensor(message: bytes, width: int) -> torch.Tensor:
    padded = torch.zeros(width, dtype=torch.uint8)
    if message:
        padded[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    return padded
