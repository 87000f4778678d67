"""Figures of `benchmarks/cuda.sh`: those of a run's steps, and launches and waits a token and a learning step.

`python benchmarks/cuda_figures.py steps RUN` · `python benchmarks/cuda_figures.py launches MODEL DEVICE`. On a CPU
operations stand for launches.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reporting import distill_sample

PROMPT, ANSWER, GROUP = 64, 32, 4
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
READS = "aten::_local_scalar_dense"  # a number that the host waits for


def steps(run: Path) -> None:
    """Print time, tokens a second and memory of each step, and the warnings of a run."""
    for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["type"] == "step":
            figures = {n: round(v, 2) for n, v in event.items() if n.startswith(("time/", "tokens/")) and v is not None}
            print(event["step"], figures, f"peak {(event.get('memory/peak') or 0) / 2**30:.2f} GiB")
        elif event["type"] == "warning":
            print("warning", event.get("message"))


def launches(name: str, device: str) -> None:
    """Print how often the host launches work and waits for it, per token of a batch and per learning step."""
    from sdpo_mlx.backends.base import SamplingParams
    from sdpo_mlx.backends.torch.policy import TorchPolicy
    from sdpo_mlx.config import ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
    from sdpo_mlx.models.resolve import resolve

    model = ModelConfig.model_validate({"name": name, "backend": "torch", "device": device})
    policy = TorchPolicy(resolve(name, backend="torch").path, model, TeacherConfig(), TrainConfig())
    rng = np.random.default_rng(0)
    words = [rng.integers(4, policy.model.vocab_size, size=n).astype(np.int32) for n in (PROMPT, 2 * PROMPT, ANSWER)]
    samples = [distill_sample(i, *words, np.full(ANSWER, -3.0, np.float32)) for i in range(GROUP)]
    sampling, seeds = SamplingParams(ANSWER, 1.0, 1.0, frozenset(), GROUP), [list(range(GROUP))]

    def generate() -> None:
        list(policy.generate([words[0]], sampling, seeds))

    def learn() -> None:
        policy.learn(samples, ObjectiveConfig(kind="sdpo"), 1e-5)

    print(f"{name} on {policy.info.device} in {policy.info.dtype}, {policy.layers} blocks, {GROUP} rollouts")
    for what, run, count in (("token", generate, ANSWER), ("learning step", learn, 1)):
        run()  # compiles, and fills caches
        print(f"per {what}: {', '.join(f'{n / count:,.1f} {each}' for each, n in _counted(run).items())}")


def _counted(run: Callable[[], None]) -> dict[str, int]:
    """Events of the host while a function runs, by what they are."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        run()
    found: Counter[str] = Counter(event.name for event in recorded.events())
    if not cuda:
        operations = sum(n for each, n in found.items() if each.startswith("aten::"))
        return {"operations": operations, "numbers read": found[READS]}
    named: dict[str, Any] = {"launches": LAUNCHES, "waits": WAITS, "numbers read": (READS,)}
    return {what: sum(found[each] for each in names) for what, names in named.items()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["steps"] and len(sys.argv) == 3:
        steps(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["launches"] and len(sys.argv) == 4:
        launches(*sys.argv[2:])
    else:
        raise SystemExit(__doc__)
