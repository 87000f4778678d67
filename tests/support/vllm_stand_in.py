"""A worker that speaks the protocol of `vllm_worker.py`, without vllm: `vllm_stand_in.py -I SCRIPT`.

It notes what it was asked in the file STAND_IN_LOG, and ends at the n-th rollout if STAND_IN_DIES is n. With
STAND_IN=loop it samples by our own loop (which imports torch, seconds), otherwise it makes rollouts up.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Rollout = tuple[int, int, list[int], list[float], str]


def note(**what: Any) -> None:
    """Append a line to the log."""
    with Path(os.environ["STAND_IN_LOG"]).open("a") as log:
        log.write(json.dumps(what) + "\n")


class MadeUp:
    """Rollouts of four tokens: the seed, the adapter's version, and 1 and 2."""

    def open(self, **what: Any) -> None:
        """Note it."""
        note(op="open", **what)
        self.left, self.version = int(os.environ.get("STAND_IN_DIES", "-1")), 0

    def adapter(self, folder: str, version: int) -> None:
        """Note the adapter's files."""
        note(op="adapter", version=version, files=sorted(path.name for path in Path(folder).iterdir()))
        self.version = version

    def generate(
        self, prompts: list[list[int]], sampling: Mapping[str, Any], seeds: list[list[int]]
    ) -> Iterator[Rollout]:
        """Yield the rollouts."""
        note(op="generate", prompts=prompts, sampling=sampling)
        for rollout in self.sampled(prompts, sampling, seeds):
            if self.left == 0:
                print("CUDA error: an illegal memory access was encountered", file=sys.stderr, flush=True)
                os._exit(3)
            self.left -= 1
            print("a library prints to standard output")
            yield rollout

    def sampled(
        self, prompts: list[list[int]], sampling: Mapping[str, Any], seeds: list[list[int]]
    ) -> Iterator[Rollout]:
        """The same without the notes."""
        for at, own in enumerate(seeds):
            if sampling["max_tokens"] < len(prompts[at]):
                raise ValueError("the prompt is\ntoo long")
            for n, seed in enumerate(own):
                yield at, n, [seed % 50, self.version, 1, 2], [-0.5, -1.0, -1.5, -2.0], "length"

    def sleep(self) -> None:
        """Note it."""
        note(op="sleep")

    def wake(self) -> None:
        """Note it."""
        note(op="wake")


class Loop(MadeUp):
    """The loop of the torch backend on the same base, with the adapter read from PEFT's layout."""

    def open(self, **what: Any) -> None:
        """Open a policy."""
        super().open(**what)
        from sdpo_mlx.backends.registry import open_policy
        from sdpo_mlx.config import AdapterConfig, ModelConfig, TeacherConfig, TrainConfig

        adapter = AdapterConfig(rank=what["rank"])
        model = ModelConfig(backend="torch", device="cpu", dtype=what["dtype"], adapter=adapter)
        self.policy: Any = open_policy(Path(what["model"]), model, TeacherConfig(), TrainConfig())

    def adapter(self, folder: str, version: int) -> None:
        """Load it."""
        super().adapter(folder, version)
        from sdpo_mlx.models.peft_layout import from_peft, read_peft

        self.policy.load_student(from_peft(*read_peft(Path(folder)), self.policy.layers)[0])

    def sampled(
        self, prompts: list[list[int]], sampling: Mapping[str, Any], seeds: list[list[int]]
    ) -> Iterator[Rollout]:
        """Sample."""
        from sdpo_mlx.backends.base import SamplingParams

        params = SamplingParams(**{**sampling, "eos_ids": frozenset(sampling["eos_ids"])})
        for at, n, found in self.policy.generate([np.array(p, np.int32) for p in prompts], params, seeds):
            yield at, n, found.ids_T.tolist(), found.logps_T.tolist(), found.finish


if __name__ == "__main__":
    worker = runpy.run_path(sys.argv[2])  # as a file: its package imports torch, seconds
    worker["serve"](Loop() if os.environ.get("STAND_IN") == "loop" else MadeUp(), *worker["pipes"]())
