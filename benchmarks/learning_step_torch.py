"""What a learning step on torch costs beside other ways: `python benchmarks/learning_step_torch.py`.

Bytes that autograd keeps, operations (views not counted: what a GPU would launch), waits for the device, and processor
seconds, of random layers on a CPU. The ratios of bytes, operations and waits hold on a GPU; the seconds do not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from sdpo_mlx.backends.packing import pack
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig

QWEN3_4B = {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_key_value_heads": 8}
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
PROMPT, ROLLOUTS, ANSWER, BLOCKS = 256, 8, 64, 6


def opened(folder: Path, sizes: dict[str, int], blocks: int, head: int, dtype: str) -> Any:
    """Return a policy on a random model."""
    from sdpo_mlx.backends.torch.policy import TorchPolicy
    from transformers import AutoConfig, AutoModelForCausalLM  # isort: skip

    config = AutoConfig.for_model("qwen3", **sizes, num_hidden_layers=blocks, head_dim=head, vocab_size=2_000)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    model = ModelConfig(name="random", backend="torch", device="cpu", dtype=dtype, adapter=AdapterConfig(rank=16))
    return TorchPolicy(folder, model, TeacherConfig(), TrainConfig(micro_batch_tokens=100_000, grad_checkpoint=True))


@contextmanager
def peft_layers() -> Iterator[None]:
    """Inside, peft's own LoRA layers are attached."""
    from sdpo_mlx.backends.torch import adapter

    own, adapter.fuse_adapter = adapter.fuse_adapter, lambda _model: None
    try:
        yield
    finally:
        adapter.fuse_adapter = own


def cost(policy: Any, model: Any, share: bool) -> tuple[float, int, float]:
    """Return kept bytes, operations and seconds of hidden states and their gradient, of one group of rollouts."""
    from torch_counts import Operations, kept_bytes

    from sdpo_mlx.backends.torch.gradient import hidden_states

    rng = np.random.default_rng(0)
    draw = [rng.integers(2_000, size=size).astype(np.int32) for size in (PROMPT, *[ANSWER] * ROLLOUTS)]
    units = pack([draw[0]] * ROLLOUTS, draw[1:], 100_000, share=share)
    held, operations, begun = 0.0, Operations(), time.process_time()
    for unit in units:
        with kept_bytes(policy.model.whole.parameters()) as kept, operations:
            states = hidden_states(model, unit)
        with operations:
            states.float().square().sum().backward()
        held = max(held, float(sum(kept.values())))
    return held, sum(operations.counts.values()), time.process_time() - begun


def adapters() -> None:
    """Print the cost of one bfloat16 block of Qwen3-4B's shape with peft's LoRA layers and ours."""
    found, tokens = [], PROMPT + ROLLOUTS * (ANSWER - 1)
    for ours in (False, True):
        with TemporaryDirectory() as folder:
            if ours:
                policy = opened(Path(folder), QWEN3_4B, 1, 128, "bfloat16")
            else:
                with peft_layers():
                    policy = opened(Path(folder), QWEN3_4B, 1, 128, "bfloat16")
        plain = replace(policy.model, recompute=False, tree="dense")
        cost(policy, plain, share=True)  # the first run begins threads and fills caches
        found.append(cost(policy, plain, share=True))
    for name, each in zip(("peft's LoRA layers", "ours"), found, strict=True):
        print(f"{name:<28}{each[0] / tokens / 1e3:8.0f} KB a token and block{each[1]:8} operations{each[2]:8.2f} s")


def shared_prompts() -> None:
    """Print the cost of one group after a shared prompt: with a cache, in one row, and with recomputation."""
    with TemporaryDirectory() as folder:
        policy = opened(Path(folder), SMOLLM2, BLOCKS, 64, "float32")
    cases = {
        "a cache": ({"tree": None, "recompute": False}, True),
        "one row": ({"tree": "dense", "recompute": False}, True),
        "recomputed, each alone": ({"tree": None, "recompute": True}, False),
        "recomputed, one row": ({"tree": "dense", "recompute": True}, True),
    }
    for name, (options, share) in cases.items():
        runs = [cost(policy, replace(policy.model, **options), share) for _ in range(3)]
        kept, operations, seconds = runs[0][0], runs[0][1], sorted(each[2] for each in runs)[1]
        print(f"{name:<28}{kept / 1e6:8.1f} MB kept{operations:8} operations{seconds:8.2f} s")


def waits() -> None:
    """Print how often the host waits for the device in a step of `tests/support/small_policies.py`."""
    from small_policies import folder, make_samples
    from torch_counts import Fetches, Operations

    from sdpo_mlx.backends.torch.model import Model
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    model = ModelConfig(name="qwen3", backend="torch", device="cpu", adapter=AdapterConfig(rank=4))
    policy = TorchPolicy(folder("qwen3"), model, TeacherConfig(), TrainConfig(micro_batch_tokens=10_000))
    Model.chunk = property(lambda _model: 3)  # type: ignore[assignment, method-assign]
    with Fetches() as fetches, Operations() as operations:
        policy.learn(make_samples(5, "hybrid"), ObjectiveConfig(kind="hybrid"), 1e-3)
    print(f"a step of two units: {fetches.count} waits, {sum(operations.counts.values())} operations")


def main() -> None:
    """Print all."""
    adapters()
    shared_prompts()
    waits()


if __name__ == "__main__":
    main()
