"""Tokens per second of a random model in the phases of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.mlx.policy import MLXPolicy
from sdpo_mlx.backends.mlx.self_test.gradients import OBJECTIVE, step_samples
from sdpo_mlx.backends.mlx.self_test.models import VOCABULARY, TestModel, open_folder, write
from sdpo_mlx.types import IntArray

MODEL = TestModel("attention", 128, "float32")
LARGER = {"hidden_size": 512, "intermediate_size": 1_536, "num_attention_heads": 4, "num_key_value_heads": 2}
PROMPT = 256  # tokens
DECODE_ROWS = (1, 8, 32, 64)
DECODE_TOKENS = 8
ROLLOUTS = (32,) * 4  # tokens of the rollouts of one learning step


def open_larger() -> MLXPolicy:
    """Open a model of about 6 million parameters."""
    with TemporaryDirectory(prefix="sdpo-self-test-") as folder:
        write(Path(folder), {**MODEL.config(), **LARGER})
        return open_folder(Path(folder), "float32")


def speeds(policy: MLXPolicy) -> dict[str, float]:
    """Return tokens per second by phase: prefill, decode at several rows, and learning (prompts counted once)."""
    prompt = np.random.default_rng(0).integers(VOCABULARY, size=PROMPT).astype(np.int32)

    def generate(rows: int, tokens: int, ids: IntArray) -> None:
        params = SamplingParams(tokens, temperature=1.0, top_p=1.0, eos_ids=frozenset(), concurrency=rows)
        list(policy.generate([ids], params, [list(range(rows))]))

    found = {"prefill": PROMPT / _seconds(partial(generate, 1, 1, prompt))}
    for rows in DECODE_ROWS:
        seconds = _seconds(partial(generate, rows, DECODE_TOKENS, prompt[:2]))
        found[f"decode, {rows} rows"] = rows * DECODE_TOKENS / seconds
    samples = step_samples(64, ROLLOUTS)
    tokens = sum(ROLLOUTS) + 64
    found["learning"] = tokens / _seconds(lambda: policy.learn(samples, OBJECTIVE, 1e-4))
    return found


def _seconds(work: Callable[[], object]) -> float:
    """Return the time of the second call: the first compiles kernels."""
    work()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
