"""Compare a whole step with mlx-lm-lora's GRPO step: same weights, prompts, group and lengths, alternating.

`python benchmarks/against_mlx_lm_lora.py --peer PYTHON --model FOLDER`; PYTHON is an interpreter of an environment with
`mlx-lm-lora`. Each side is a process of its own and makes STEPS steps of one prompt with GROUP rollouts of TOKENS
tokens. No rollout ends early, and both sides load the same BLAS. Our side is SDPO, whose step includes the teacher's
forward pass; the other is GRPO without a reference model. The first step is not counted. Peaks are reported by MLX and,
for the process, by the system.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from reporting import distill_sample, peak_resident, write_json

GROUP, TOKENS, PROMPT, STEPS = 8, 64, 256, 3
RANK = 16


def main() -> None:
    """Run the sides alternately; print seconds per step, peaks and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="interpreter of mlx-lm-lora's environment")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=["ours", "peer", "peer-checkpointed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        seconds = of_ours(options.model) if options.side == "ours" else of_peer(options.model, options.side != "peer")
        print(json.dumps({"seconds": seconds[1:], "resident": peak_resident(), "mlx": mlx_peak()}))
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in ("ours", "peer", "peer-checkpointed")}
    for _ in range(options.rounds):
        for side, rows in found.items():
            rows.append(_measured(options, side))
            print(side, rows[-1], file=sys.stderr, flush=True)
    summary = {
        side: {
            "seconds": statistics.median(s for row in rows for s in row["seconds"]),
            "mlx": max(row["mlx"] for row in rows),
            "resident": max(row["resident"] for row in rows),
        }
        for side, rows in found.items()
    }
    for side, row in summary.items():
        ratio = summary["ours"]["seconds"] / row["seconds"]
        memory = summary["ours"]["mlx"] / row["mlx"]
        print(f"{side}: {row['seconds']:.1f} s, {row['mlx'] / 2**30:.2f} GiB; ours / this {ratio:.2f}, {memory:.2f}")
    write_json(options.out, summary)


def _measured(options: Any, side: str) -> dict[str, Any]:
    python = sys.executable if side == "ours" else options.peer
    command = [python, __file__, "--peer", options.peer, "--model", str(options.model), "--side", side]
    environment = {**os.environ, "MKL_CBWR": "AVX2", "MKL_THREADING_LAYER": "GNU", "BENCH_BLAS": _blas()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _blas() -> str:
    """Return the BLAS that our side loads by itself; the peer loads the same file, or its products would be slow."""
    return next(map(str, sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))), "")


def mlx_peak() -> int:
    """Return the highest value of MLX's counter; `policy.memory()` resets it, so PEAKS keeps the earlier ones."""
    import mlx.core as mx

    return max(mx.get_peak_memory(), PEAKS[0])


PEAKS = [0]


def _prompt() -> list[int]:
    return [(37 * i + 11) % 40_000 + 100 for i in range(PROMPT)]


def of_ours(model: Path) -> list[float]:
    """Return the seconds of each of our steps."""
    import numpy as np

    from sdpo_mlx.backends.base import SamplingParams
    from sdpo_mlx.backends.registry import open_policy
    from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig

    train = TrainConfig(grad_checkpoint=True)
    settings = ModelConfig(dtype="float32", adapter=AdapterConfig(rank=RANK))
    policy, seconds = open_policy(model, settings, TeacherConfig(), train), []
    prompt = np.array(_prompt(), np.int32)
    context = np.concatenate([prompt, prompt[:64]])
    for step in range(STEPS):
        begun = time.perf_counter()
        sampling = SamplingParams(TOKENS, 1.0, 1.0, frozenset())
        found = policy.generate([prompt], sampling, [[100 * step + n for n in range(GROUP)]])
        samples = [distill_sample(n, prompt, context, each.ids_T, each.logps_T) for _, n, each in found]
        policy.learn(samples, ObjectiveConfig(), 1e-5)
        policy.update_teacher(TeacherConfig())
        PEAKS[0] = max(PEAKS[0], policy.memory()["peak"])
        seconds.append(time.perf_counter() - begun)
    return seconds


def of_peer(model: Path, checkpointed: bool) -> list[float]:
    """Return the seconds of each GRPO step of mlx-lm-lora."""
    if library := os.environ.get("BENCH_BLAS"):
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)  # before the first import of mlx
    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx_lm import load
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm_lora.trainer.grpo_trainer import GRPOTrainingArgs, train_grpo

    whole, tokenizer = load(str(model))
    whole.set_dtype(mx.float32)
    whole.freeze()
    linear_to_lora_layers(whole, len(whole.layers), {"rank": RANK, "scale": 2.0, "dropout": 0.0})
    tokenizer._eos_token_ids = {whole.args.vocab_size + 7}  # no rollout ends early
    marks: list[float] = []

    def reward(*_: Any, completions: Any, **__: Any) -> list[float]:
        marks.append(time.perf_counter())
        return [float(i % 2) for i in range(len(completions))]

    def batches(**_: Any) -> Any:
        while True:
            yield [mx.array(_prompt())], [mx.array([1])], ["p"], ["a"], [None]

    args = GRPOTrainingArgs(
        batch_size=1,
        iters=STEPS + 1,
        steps_per_report=1,
        steps_per_eval=1_000,
        steps_per_save=1_000,
        max_seq_length=2_048,
        adapter_file=str(Path(os.devnull)),
        grad_checkpoint=checkpointed,
        group_size=GROUP,
        beta=0.0,
        max_completion_length=TOKENS,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )
    try:
        train_grpo(
            whole, None, tokenizer, optim.AdamW(1e-5), [None], None, [reward], args,
            iterate_batches=batches, end_answer_token="",
        )  # fmt: skip
    except Exception:  # its save at the end fails on /dev/null; the steps before are measured
        if len(marks) <= STEPS:
            raise
    return [b - a for a, b in pairwise(marks)][:STEPS]


if __name__ == "__main__":
    main()
