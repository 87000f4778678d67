"""Compare the times of `sdpo plan` with those of steps: `python benchmarks/step_times.py`.

Random tokens, rollouts of full length, learning block by block. First the self-test's speeds are measured, unless
they are in the cache; then each model runs a small step, and the times planned from these speeds, and from the two
rates without a self-test, are divided by it. `--processor-time` counts processor time instead of the clock: for a
machine that does other work too, with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from reporting import distill_sample

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.memory_plan import Workload
from sdpo_mlx.backends.mlx import BLAS
from sdpo_mlx.backends.mlx.device import block_gigaflops, gigabytes, has_metal
from sdpo_mlx.backends.mlx.policy import MLXPolicy
from sdpo_mlx.backends.mlx.self_test import models, speed
from sdpo_mlx.backends.step_time import Machine, Times, times
from sdpo_mlx.config import ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.resolve import configuration, resolve
from sdpo_mlx.types import DistillSample

PHASES = ("prefill", "decode", "teacher", "learn", "total")
SMALL = {"hidden_size": 384, "intermediate_size": 1_024, "num_hidden_layers": 8, "vocab_size": 32_000}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
RANDOM = {
    "attention": models.TestModel("attention", 64, "float32"),
    "4-bit": models.TestModel("attention", 64, "4-bit"),
    "gated delta": models.TestModel("gated delta", 128, "float32"),
    "experts": models.TestModel("experts", 64, "float32"),
}


@dataclass(frozen=True)
class Step:
    """The tokens of a step."""

    prompt: int
    answer: int
    context: int
    group: int
    problems: int

    def work(self, width: int, micro_batch: int) -> Workload:
        """Return it as the plan counts it."""
        return Workload(
            **vars(self),
            micro_batch=micro_batch,
            concurrency=self.group * self.problems,
            keep=False,
            support="top_k",
            bytes=width,
        )


def main() -> None:
    """Print a table: seconds of each phase, and planned over measured, without and with the self-test's speeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["tiny", "smollm2", *RANDOM])
    parser.add_argument("--step", type=int, nargs=5, default=(32, 24, 96, 4, 2), metavar="N", help=Step.__doc__)
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    if options.processor_time:
        time.perf_counter = time.process_time
    if speed.measured() is None:
        for name, rate in speed.measure():
            print(f"{name}: {rate:.0f} tokens/s", file=sys.stderr)
    known = speed.measured()
    assert known is not None
    estimate = Machine(1e9 * block_gigaflops(), 1e9 * gigabytes(), has_metal())
    print(f"BLAS {BLAS}; prompt, answer, context, group, problems: {' '.join(map(str, options.step))}\n")
    print("| model | weights of a layer | | " + " | ".join(PHASES) + " |\n|" + "---|" * 8)
    for name in options.models:
        with ExitStack() as stack:
            policy, shape = opened(name, stack)
        step = Step(*options.step)
        work = step.work(4 if policy.info.dtype == "float32" else 2, policy.budget)
        found = measured(policy, step, shape.vocabulary)
        weights = f"{shape.active_parameters / shape.layers / 1e6:.2f} M"
        print(f"| {name} | {weights} | seconds | " + " | ".join(f"{getattr(found, p):.2f}" for p in PHASES) + " |")
        for label, machine in (("two rates", estimate), ("self-test", known)):
            planned = times(shape, work, machine)
            ratios = " | ".join(f"{getattr(planned, p) / getattr(found, p):.2f}" for p in PHASES)
            print(f"| {name} | {weights} | {label} | {ratios} |", flush=True)


def opened(name: str, stack: ExitStack) -> tuple[MLXPolicy, ModelDims]:
    """Open a model by its name, or a random one of this list."""
    if name not in RANDOM:
        config = configuration(name)
        model = ModelConfig(name=name)
        return MLXPolicy(resolve(name).path, model, TeacherConfig(), TrainConfig()), ModelDims.of(config, name)
    folder = Path(stack.enter_context(TemporaryDirectory()))
    config = RANDOM[name].config()
    (config.get("text_config") or config).update(SMALL if "linear_num_value_heads" in str(config) else SMALL | HEADS)
    models.write(folder, config)
    return models.open_folder(folder, "float32"), ModelDims.of(json.loads(json.dumps(config)), name)


def measured(policy: MLXPolicy, step: Step, words: int) -> Times:
    """Run the step's phases, each once before without being counted, and return their seconds."""
    rng = np.random.default_rng(0)

    def ids(count: int) -> Any:
        return rng.integers(words, size=count).astype(np.int32)

    prompts, seeds = [ids(step.prompt) for _ in range(step.problems)], list(range(step.group))

    def generate(tokens: int) -> float:
        params = SamplingParams(tokens, 1.0, 1.0, frozenset(), concurrency=step.group * step.problems)
        begun = time.perf_counter()
        list(policy.generate(prompts, params, [seeds] * step.problems))
        return time.perf_counter() - begun

    generate(2)
    short, long = generate(2), generate(step.answer)
    decode = (long - short) / (step.answer - 2) * step.answer
    contexts = [ids(step.context) for _ in prompts]  # one for a group, as the plan counts them
    pairs = zip(prompts, contexts, strict=True)
    samples = [sample(prompt, context, ids(step.answer), n) for prompt, context in pairs for n in seeds]
    for _ in range(2):
        begun = time.perf_counter()
        update = policy.learn(samples, ObjectiveConfig(), 1e-5)
        whole = time.perf_counter() - begun
    return Times(max(long - decode, 1e-6), decode, update.teacher_seconds, whole - update.teacher_seconds)


def sample(prompt: Any, context: Any, response: Any, index: int) -> DistillSample:
    """Return a rollout to learn from; its problem is its prompt."""
    logps = np.full(response.size, -6.0, np.float32)
    return replace(distill_sample(index, prompt, context, response, logps), problem_id=str(prompt[:3]))


if __name__ == "__main__":
    main()
