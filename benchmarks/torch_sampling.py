"""Sampling with torch's loop, with and without what it saves: `python benchmarks/torch_sampling.py`.

(1) 240 short rollouts, 16 at once: columns of the cache, and tokens a second, where rows that end give their columns
back and where they do not. (2) One draw with top-p over a vocabulary of 151,936: the likeliest ids against a sort of
all. Both sides alternate in one process and give the same tokens; times are seconds of the processor.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from reporting import machine, write_json

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.torch import generation, kv_cache
from sdpo_mlx.backends.torch.policy import TorchPolicy
from sdpo_mlx.config import ModelConfig, TeacherConfig, TrainConfig

EMBEDDED = Path(__file__).parents[1] / "sdpo_mlx" / "assets" / "tiny"
PROMPTS, GROUP, AT_ONCE, ANSWER = 30, 8, 16, 64
WORDS, ROWS = 151_936, 16


def main() -> None:
    """Print widths, times and their ratios; write them as JSON to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder of a base; default: the embedded model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = ModelConfig(name=str(options.model), backend="torch", device="cpu", dtype="float32")
    policy = TorchPolicy(options.model, model, TeacherConfig(), TrainConfig())
    found = {"rollouts": rollouts(policy, options.rounds), "top-p": draws(options.rounds)}
    for name, value in found.items():
        print(f"{name:<10} {value}")
    write_json(options.out, {"machine": machine(), **found})


def rollouts(policy: TorchPolicy, rounds: int) -> dict[str, Any]:
    """The widest and the mean cache in columns, and the ratio of tokens a second."""
    rng, size = np.random.default_rng(0), policy.model.vocab_size
    prompts = [rng.integers(size, size=length).astype(np.int32) for length in rng.integers(4, 25, size=PROMPTS)]
    seeds = [[int(each) for each in rng.integers(2**62, size=GROUP)] for _ in prompts]
    ends = frozenset(range(0, size, 20))  # so that rollouts are about 20 tokens long
    sampling = SamplingParams(ANSWER, 1.0, 1.0, ends, AT_ONCE)
    widths: dict[str, list[int]] = {"cut": [], "kept": []}
    answers: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {"cut": [], "kept": []}
    for _ in range(rounds):
        for name, seen in widths.items():
            seen.clear()
            with _columns(kept=name == "kept", widths=seen):
                begun = time.process_time()
                made = {(at, n): g for at, n, g in generation.generate(policy.model, prompts, sampling, seeds)}
                seconds[name].append(time.process_time() - begun)
            answers[name] = {key: each.ids_T.tolist() for key, each in made.items()}
    assert answers["cut"] == answers["kept"]
    shown = {name: {"widest": max(each), "mean": round(statistics.mean(each))} for name, each in widths.items()}
    tokens = sum(map(len, answers["cut"].values()))
    return {**shown, "tokens": tokens, **_ratios(seconds["kept"], seconds["cut"])}


@contextmanager
def _columns(*, kept: bool, widths: list[int]) -> Iterator[None]:
    """Note the width of the cache after each token; `kept`: columns of rows that ended stay."""
    select, decode = generation.selected, generation.Batch.decode

    def watched(batch: generation.Batch) -> None:
        decode(batch)
        assert batch.cache is not None
        widths.append(kv_cache.keys_in(batch.cache))

    def selected(cache: Any, rows: torch.Tensor, width: int) -> Any:
        return select(cache, rows, 10**9 if kept else width)

    with patch.object(generation.Batch, "decode", watched), patch.object(generation, "selected", selected):
        yield


def draws(rounds: int) -> dict[str, Any]:
    """The ratio of a draw's times at `top_p` 0.95 with peaked logits, as of a trained model."""
    logits = 3.0 * torch.randn((ROWS, WORDS), generator=torch.Generator().manual_seed(0))
    logits[:, :100] += 12.0
    uniforms = torch.rand((ROWS, 1), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sampling = SamplingParams(1, 1.0, 0.95, frozenset())

    def drawn() -> list[int]:
        return list(generation.drawn(logits, uniforms, sampling)[0].tolist())

    seconds: dict[str, list[float]] = {"likeliest": [], "all sorted": []}
    tokens: dict[str, list[int]] = {}
    for _ in range(rounds):
        for name, size in {"likeliest": generation.NUCLEUS, "all sorted": 1}.items():
            with patch.object(generation, "NUCLEUS", size):
                seconds[name].append(_timed(lambda name=name: tokens.update({name: drawn()})))  # type: ignore[misc]
    assert tokens["likeliest"] == tokens["all sorted"]
    return _ratios(seconds["all sorted"], seconds["likeliest"])


def _timed(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def _ratios(before: list[float], after: list[float]) -> dict[str, Any]:
    """Median times before and after, and how many times faster: median and range over the rounds."""
    ratios = sorted(old / new for old, new in zip(before, after, strict=True))
    return {
        "before": round(statistics.median(before), 3),
        "after": round(statistics.median(after), 3),
        "times faster": round(statistics.median(ratios), 2),
        "range": [round(ratios[0], 2), round(ratios[-1], 2)],
    }


if __name__ == "__main__":
    main()
