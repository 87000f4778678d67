"""Sampling by vLLM in a process and an environment of its own, since its pins conflict with ours.

The worker (`vllm_worker.py`) gets the adapter before the first rollouts after each change of it, and sleeps while a
step is learned. The same seed gives the same rollout again, but not the loop's.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.distributed.serialization import HEADER, decode, encode
from sdpo_mlx.backends.torch import generation
from sdpo_mlx.backends.torch.model import Model
from sdpo_mlx.backends.torch.rollouts.engine import Sampled
from sdpo_mlx.core.errors import ConfigError, EngineLostError
from sdpo_mlx.core.storage import write_bytes, write_text
from sdpo_mlx.core.text import display
from sdpo_mlx.models.adapter_folder import CONFIG, PEFT_WEIGHTS
from sdpo_mlx.types import FinishReason, Generation, IntArray

WORKER = Path(__file__).with_name("vllm_worker.py")
POLL = 0.1  # seconds between two looks at an interrupt
MEMORY = 0.9  # of the card's free memory that vllm may fill
Peft = tuple[Mapping[str, Any], Mapping[str, Any]]  # tensors and adapter_config.json


@dataclass(frozen=True)
class Student:
    """The weights to sample with: a count of their changes, and the adapter in PEFT's layout."""

    changes: Callable[[], int]
    peft: Callable[[], Peft]


@dataclass(frozen=True)
class Base:
    """The base as vllm opens it: its folder, type, the adapter's rank, and the longest sequence."""

    path: Path
    dtype: str
    rank: int
    length: int


class VLLM:
    """A worker with vLLM; started at once, so that what is wrong with it ends the run before it begins.

    Raise ConfigError if it cannot be started or does not support the model.
    """

    name = "vllm"
    stream = staticmethod(generation.stream)

    def __init__(self, python: str, base: Base, student: Student, device: torch.device) -> None:
        self.python, self.base, self.student, self.device = python, base, student, device
        self.folder = tempfile.TemporaryDirectory(prefix="sdpo-vllm-", dir=_memory_folder())
        self.log = Path(self.folder.name) / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.version, self.asleep = -1, False
        self._start()

    def generate(
        self,
        model: Model,  # noqa: ARG002 - the worker has its own
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Sampled:
        """See `RolloutEngine.generate`. Raise EngineLostError if the worker ends or fails."""
        names = ("max_tokens", "temperature", "top_p")
        plain = {**{name: getattr(sampling, name) for name in names}, "eos_ids": sorted(sampling.eos_ids)}
        rows = [[int(seed) for seed in own] for own in seeds]
        request, done = {"op": "generate", "sampling": plain, "seeds": rows}, False
        try:
            with _reported():
                self._ready()
                self._send(request, {str(at): ids for at, ids in enumerate(prompts)})
                while "done" not in (received := self._receive(interrupted))[0]:
                    reply, arrays = received
                    yield reply["at"], reply["n"], _finished(reply["finish"], arrays, sampling)
            done = True
        finally:
            if not done:
                self.close()  # it would go on sampling

    def rest(self) -> None:
        """Let the worker leave the card's memory."""
        if self.process is not None and not self.asleep:
            with _reported():
                self._ask({"op": "sleep"})
            self.asleep = True

    def close(self) -> None:
        """End the worker; the next rollouts start another."""
        if self.process is not None:
            _end(self.process)
        self.process = None

    def _start(self) -> None:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",  # nothing is fetched here
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a second process would outlive this one if it is killed
        }
        for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
            environment.pop(name, None)  # vllm's sleep refuses expandable segments
        try:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [self.python, "-I", str(WORKER)],  # without this folder and variables on the path
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for this process, which then saves
                )
        except OSError as error:
            fix = "name the Python in whose environment vllm is installed"
            raise ConfigError(
                f"{self.python} cannot be run: {error.strerror}", where="rollout.vllm", fix=fix
            ) from error
        weakref.finalize(self, _end, self.process)
        self.version, self.asleep = -1, False
        base = self.base
        opening = {"op": "open", "model": str(base.path), "dtype": base.dtype, "rank": base.rank, "length": base.length}
        try:
            self._ask({**opening, "memory": _share(self.device)})
        except _WorkerError as error:
            self.close()
            fix = "install vllm there, see docs/cuda.md, or use rollout.engine=auto"
            raise ConfigError(f"vllm cannot be started: {error}", where="rollout.vllm", fix=fix) from error

    def _ready(self) -> None:
        """Start or wake the worker, and hand it the adapter if that has changed."""
        if self.process is None:
            self._start()
        if self.asleep:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._ask({"op": "wake"})
            self.asleep = False
        version = self.student.changes()
        if version != self.version:
            self._ask({"op": "adapter", "folder": self._write_adapter(), "version": version + 1})
            self.version = version

    def _write_adapter(self) -> str:
        from safetensors.numpy import save

        tensors, settings = self.student.peft()
        write_bytes(Path(self.folder.name) / PEFT_WEIGHTS, save(dict(tensors), metadata={"format": "pt"}))
        write_text(Path(self.folder.name) / CONFIG, json.dumps(settings))
        return self.folder.name

    def _ask(self, plain: Mapping[str, Any]) -> None:
        self._send(plain)
        self._receive(lambda: False)

    def _send(self, plain: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> None:
        message = encode(plain, arrays)
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # reading then finds that the worker has ended
            self.process.stdin.write(len(message).to_bytes(HEADER, "little") + message)
            self.process.stdin.flush()

    def _receive(self, interrupted: Callable[[], bool]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        size = int.from_bytes(self._read(HEADER, interrupted), "little")
        reply, arrays = decode(self._read(size, interrupted))
        if "error" in reply:
            raise _WorkerError(display(" ".join(str(reply["error"]).split()), 300))
        return reply, arrays

    def _read(self, size: int, interrupted: Callable[[], bool]) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        source, found = self.process.stdout.fileno(), b""
        while len(found) < size:
            if interrupted():
                raise KeyboardInterrupt
            if not select.select([source], [], [], POLL)[0]:
                continue
            part = os.read(source, size - len(found))
            if not part:
                raise self._lost()
            found += part
        return found

    def _lost(self) -> _WorkerError:
        assert self.process is not None
        code = self.process.wait()
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((display(line.strip(), 200) for line in reversed(lines) if line.strip()), "it printed nothing")
        self.close()
        return _WorkerError(f"its process ended with {code}: {last}")


class _WorkerError(Exception):
    """The worker ended, or could not do what it was asked."""


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except _WorkerError as error:
        raise EngineLostError("vllm", str(error)) from error


def _finished(finish: FinishReason, arrays: Mapping[str, Any], sampling: SamplingParams) -> Generation:
    """The rollout until a stop text, which vllm does not know, or all of it."""
    ids_T, logps_T = arrays["ids"], arrays["logps"]
    size = next((n for n in range(1, ids_T.size + 1) if sampling.at_stop_text(ids_T[:n].tolist())), 0)
    return Generation(ids_T[:size], logps_T[:size], "stop") if size else Generation(ids_T, logps_T, finish)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _share(device: torch.device) -> float | None:
    """The share of a card's whole memory that is free, less some."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return round(MEMORY * free / total, 3)


def _memory_folder() -> str | None:
    """A folder in memory, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
