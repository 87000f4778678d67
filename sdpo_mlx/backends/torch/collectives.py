"""Ranks on torch.distributed, as `torchrun` starts them: gloo through the host's memory, NCCL for large sums on GPUs.

A sum that NCCL carries never ends if a rank is lost meanwhile, and whatever waits for it inside CUDA receives no
signal (nccl 585). So nothing here waits inside CUDA: small sums go through gloo, which reports a lost rank, and
everything on a card is asked whether it is done.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from sdpo_mlx.backends.torch.device import has_cuda
from sdpo_mlx.core.errors import ConfigError

LONGEST = timedelta(days=2)  # the heartbeat detects a lost rank; a long rollout is no fault
# Bytes of a sum up to which gloo carries it: an adapter of rank 16 on a model of 4B has 132 MB, the whole model 16 GB.
GLOO_BYTES = 2**30
ASK_SECONDS = 0.001  # how often a card is asked whether it is done


class TorchCollectives:
    """See `Collectives`."""

    backend = "torch"

    def __init__(self) -> None:
        cards = has_cuda()
        if cards:
            torch.cuda.set_device(own_card(os.environ, torch.cuda.device_count()))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cards and dist.is_nccl_available() else "gloo", timeout=LONGEST)
        self.rank, self.size, self.leader = dist.get_rank(), dist.get_world_size(), os.environ["MASTER_ADDR"]
        self.card = torch.cuda.current_device() if cards else None
        self._aborted = threading.Event()

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
        flat = self._summed(torch.cat([array.float().reshape(-1) for array in arrays.values()]))
        parts = flat.split([array.numel() for array in arrays.values()])
        return {
            name: part.reshape(array.shape).to(array.dtype)
            for (name, array), part in zip(arrays.items(), parts, strict=True)
        }

    def abort(self) -> None:
        """See `Collectives.abort`."""
        if self._aborted.is_set():
            return
        self._aborted.set()
        if self.card is not None:  # NCCL's kernels run until then; `abort` itself may wait
            groups = list(dist.distributed_c10d._world.pg_map)
            threading.Thread(target=lambda: [group.abort() for group in groups], daemon=True).start()

    def close(self) -> None:
        """See `Collectives.close`."""
        dist.destroy_process_group()

    def _summed(self, own: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a float32 tensor, which may be overwritten."""
        if on_host(own):
            dist.all_reduce(own)
            return own
        if own.numel() * own.element_size() > GLOO_BYTES and dist.is_nccl_available():
            work = dist.all_reduce(own, async_op=True)
            self._wait(work.is_completed)
            work.wait()  # raises what went wrong
            return own
        host = pinned(own)
        host.copy_(own, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._wait(copied.query)
        dist.all_reduce(host)
        return host.to(own.device, non_blocking=True)

    def _wait(self, is_done: Callable[[], bool]) -> None:
        """Wait until a card is done. Raise ConnectionError if a rank was lost before."""
        while not is_done():
            if self._aborted.is_set():
                raise ConnectionError("the sum was given up")
            time.sleep(ASK_SECONDS)


def on_host(tensor: torch.Tensor) -> bool:
    """Whether gloo reads this tensor where it is."""
    return tensor.device.type == "cpu"


def pinned(like: torch.Tensor) -> torch.Tensor:
    """An empty tensor in host memory that a card writes without the processor."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def own_card(environ: Mapping[str, str], cards: int) -> int:
    """Return the card of this rank; raise ConfigError, on every rank of the host, if it has more ranks than cards.

    NCCL refuses two ranks on one card.
    """
    rank = int(environ.get("LOCAL_RANK", "0"))
    ranks = max(int(environ.get("LOCAL_WORLD_SIZE", "1")), rank + 1)
    if ranks > cards:
        fix = f"start torchrun with --nproc-per-node {cards}, or set CUDA_VISIBLE_DEVICES to more cards"
        raise ConfigError(f"{ranks} ranks on this host, but torch sees {cards} of its cards", where="torchrun", fix=fix)
    return rank


def _tensor(message: bytes, width: int) -> torch.Tensor:
    padded = torch.zeros(width, dtype=torch.uint8)
    if message:
        padded[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    return padded
