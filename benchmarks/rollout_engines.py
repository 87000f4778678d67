"""The loop beside continuous batching on torch: `python benchmarks/rollout_engines.py`.

Both sample the same rollouts of a random Qwen3 with a LoRA, in turn in one process. Printed are the ratio of tokens a
second (of the processor's time), and per pass of all rows the operations that a GPU would launch and the calls that
wait for it, each counted with 2 and with 4 blocks and given per block and for the rest. A GPU was not measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from reporting import machine, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

BLOCKS = (2, 4)
GROUP, ANSWER, PROMPTS = 8, 48, (32, 64)
SIZES = {
    "vocab_size": 4_096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2_048,
    "tie_word_embeddings": True,
}


def main() -> None:
    """Print the figures; write them as JSON to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32, help="rollouts, all at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        policies = {blocks: policy_of(Path(folder) / str(blocks), blocks) for blocks in BLOCKS}
        found: dict[str, Any] = {"speed": speed(policies[BLOCKS[-1]], options.rows, options.rounds)}
        counts = {blocks: counted(policy, options.rows) for blocks, policy in policies.items()}
    few, many = (counts[blocks] for blocks in BLOCKS)
    for name in few:
        per_block = {what: (many[name][what] - few[name][what]) / (BLOCKS[1] - BLOCKS[0]) for what in few[name]}
        rest = {what: few[name][what] - BLOCKS[0] * per_block[what] for what in few[name]}
        found[name] = {what: {"a block": round(per_block[what], 1), "rest": round(rest[what], 1)} for what in rest}
    for name, value in found.items():
        print(f"{name:<10} {value}")
    write_json(options.out, {"machine": machine(), "rows": options.rows, **found})


def policy_of(folder: Path, blocks: int) -> Any:
    """A policy on a random base of so many blocks, in float32 on the CPU, with a LoRA that is not zero."""
    import torch
    from small_policies import stir
    from transformers import AutoModelForCausalLM, Qwen3Config

    from sdpo_mlx.backends.torch.policy import TorchPolicy
    from sdpo_mlx.config import ModelConfig, TeacherConfig, TrainConfig

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen3Config(num_hidden_layers=blocks, **SIZES)).save_pretrained(folder)
    model = ModelConfig(name="random", backend="torch", device="cpu", dtype="float32")
    policy = TorchPolicy(folder, model, TeacherConfig(), TrainConfig())
    stir(policy, scale=0.02)
    return policy


def requests(policy: Any, rows: int) -> tuple[Any, ...]:
    """Prompts, sampling and seeds: groups of eight, none of which ends before its length."""
    from sdpo_mlx.backends.base import SamplingParams

    rng = np.random.default_rng(0)
    lengths = rng.integers(*PROMPTS, size=rows // GROUP)
    prompts = [rng.integers(SIZES["vocab_size"], size=length).astype(np.int32) for length in lengths]
    seeds = [[int(each) for each in rng.integers(2**62, size=GROUP)] for _ in prompts]
    return policy.model, prompts, SamplingParams(ANSWER, 1.0, 1.0, frozenset(), rows), seeds


def engines() -> dict[str, Any]:
    """Both engines by name."""
    from sdpo_mlx.backends.torch.rollouts.batching import Batching
    from sdpo_mlx.backends.torch.rollouts.engine import Loop

    return {"loop": Loop(), "batching": Batching()}


def speed(policy: Any, rows: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of each engine, and the ratio of batching to the loop: median and range over the rounds."""
    found: dict[str, list[float]] = {"loop": [], "batching": []}
    tokens: dict[str, Any] = {}
    both = engines()
    for _ in range(rounds + 1):
        for name, engine in both.items():
            begun = time.process_time()
            made = {(at, n): each.ids_T.tolist() for at, n, each in engine.generate(*requests(policy, rows))}
            found[name].append(rows * ANSWER / (time.process_time() - begun))
            tokens[name] = made
    both["batching"].close()
    same = sum(tokens["loop"][key] == tokens["batching"][key] for key in tokens["loop"])
    # The first round makes the cache.
    ratios = sorted(theirs / ours for ours, theirs in zip(found["loop"][1:], found["batching"][1:], strict=True))
    return {
        "equal rollouts": f"{same} of {rows}",
        "tokens a second": {name: round(statistics.median(each[1:])) for name, each in found.items()},
        "batching to loop": round(statistics.median(ratios), 2),
        "range": [round(ratios[0], 2), round(ratios[-1], 2)],
    }


def counted(policy: Any, rows: int) -> dict[str, dict[str, float]]:
    """Operations and waits of each engine per token of all rows, prompts included."""
    found = {}
    for name, engine in engines().items():
        with costs() as cost:
            list(engine.generate(*requests(policy, rows)))
        found[name] = {what: value / ANSWER for what, value in cost().items()}
        engine.rest()
    return found


@contextmanager
def costs() -> Iterator[Any]:
    """Count operations and waits inside, in the thread of continuous batching too."""
    from torch_counts import Fetches, Operations
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    modes = [(Fetches(), Operations()) for _ in range(2)]
    body = ContinuousBatchingManager._generation_loop_body

    def watched(*arguments: Any, **options: Any) -> Any:
        fetches, operations = modes[1]  # modes belong to a thread
        with fetches, operations:
            return body(*arguments, **options)

    with patch.object(ContinuousBatchingManager, "_generation_loop_body", watched), modes[0][0], modes[0][1]:
        yield lambda: {
            "operations": sum(operations.counts.total() for _, operations in modes),
            "waits": sum(fetches.count for fetches, _ in modes),
        }


if __name__ == "__main__":
    main()
