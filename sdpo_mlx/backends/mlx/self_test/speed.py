"""The speed of the phases of a training step on random models with small and large layers, for `sdpo plan`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.measured_speed import LayerSpeed, MeasuredSpeed, keep, kept
from sdpo_mlx.backends.memory_plan import Workload
from sdpo_mlx.backends.mlx import BLAS
from sdpo_mlx.backends.mlx.blas import blas_threads
from sdpo_mlx.backends.mlx.device import machine
from sdpo_mlx.backends.mlx.generation import RowSampler
from sdpo_mlx.backends.mlx.loading import device_name
from sdpo_mlx.backends.mlx.policy import MLXPolicy
from sdpo_mlx.backends.mlx.self_test.models import VOCABULARY, TestModel, open_folder, write
from sdpo_mlx.backends.step_time import operations
from sdpo_mlx.config import ObjectiveConfig
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.types import DistillSample, IntArray

DECODE_ROWS = (1, 8, 32, 64)
DECODE_TOKENS = 6
DECODE_PROMPT = 8  # tokens
GROUP = 4
SAMPLED_ROWS, SAMPLED_WORDS, SAMPLED_TOKENS = 16, 32_768, 4
SWIGLU = 3  # its inner width, in times of the outer one


@dataclass(frozen=True)
class Sizes:
    """Layers and widths of the models, and tokens: large enough for the device to show its speed, yet in seconds."""

    models: tuple[tuple[int, int, int], ...]  # how many layers, how wide, and how often it is measured
    prompt: int
    answer: int


# The fastest time counts. The first one compiles kernels: on a CPU those of all models, whatever their width.
CPU = Sizes(((4, 128, 4), (2, 768, 1)), prompt=64, answer=16)  # 14 million parameters
GPU = Sizes(((4, 512, 4), (2, 2_048, 3)), prompt=512, answer=128)  # 100 million parameters


@dataclass(frozen=True)
class Model:
    """One random model, `4-bit` or of plain numbers, and the tokens to measure it with."""

    layers: int
    width: int
    dtype: str
    sizes: Sizes

    @property
    def config(self) -> dict[str, Any]:
        """Return the contents of its `config.json`: heads of 64, two queries to each key."""
        heads = self.width // 64
        own = {"num_hidden_layers": self.layers, "hidden_size": self.width, "intermediate_size": SWIGLU * self.width}
        more = {"num_attention_heads": heads, "num_key_value_heads": heads // 2, "max_position_embeddings": 4_096}
        return {**TestModel("attention", 64, self.dtype).config(), **own, **more}

    @property
    def shape(self) -> ModelDims:
        """Return its dimensions."""
        return ModelDims.of(self.config, "self-test")

    def opened(self) -> MLXPolicy:
        """Write and open it; quantized ones compute in the type of the others."""
        plain = "float32" if device_name() == "cpu" else "bfloat16"
        with TemporaryDirectory(prefix="sdpo-self-test-") as folder:
            write(Path(folder), self.config)
            return open_folder(Path(folder), plain)


@dataclass
class Clock:
    """Notes the time after each token, as the question of `generate` whether to stop."""

    begun: float
    noted: list[float] = field(default_factory=list)

    def __call__(self) -> bool:
        """Note the time and go on."""
        self.noted.append(time.perf_counter())
        return False

    @property
    def first(self) -> float:
        """Return the time to the first token."""
        return self.noted[0] - self.begun

    def token(self, tokens: int) -> float:
        """Return the median time between two tokens."""
        return float(np.median(np.diff(self.noted[:tokens])))


def depends_on() -> list[str]:
    """Return what a speed holds for: the machine, its device and versions, and BLAS with its threads."""
    return [*machine(), BLAS, str(blas_threads(BLAS))]


def measured() -> MeasuredSpeed | None:
    """Return what the self-test measured on this machine with these versions; None if it has not."""
    return kept(depends_on())


def measure(sizes: Sizes | None = None) -> Iterator[tuple[str, float]]:
    """Yield tokens per second of the largest layers by phase, and keep the speeds of all for `measured`."""
    sizes = sizes or (CPU if device_name() == "cpu" else GPU)
    found: dict[str, list[LayerSpeed]] = {"plain": [], "4-bit": []}
    width = 0
    for dtype, speeds in found.items():
        for layers, wide, rounds in sizes.models:
            model = Model(layers, wide, dtype, sizes)
            policy = model.opened()
            width = 4 if policy.info.dtype == "float32" else 2
            tokens, speed = model_speed(model, policy, rounds)
            speeds.append(speed)
        kind = policy.info.dtype if dtype == "plain" else dtype
        yield from ((f"{kind}, {phase}", rate) for phase, rate in tokens.items())
    plain, quantized = map(tuple, found.values())
    keep(MeasuredSpeed(date.today().isoformat(), width, plain, quantized, sampling()), depends_on())


def model_speed(model: Model, policy: MLXPolicy, rounds: int) -> tuple[dict[str, float], LayerSpeed]:
    """Return tokens per second by phase, prompts counted once, and FLOP/s: the fastest of so many rounds."""
    shape, sizes = model.shape, model.sizes
    found = [seconds(policy, sizes) for _ in range(rounds)]
    fastest = {name: min(each[name] for each in found) for name in found[0]}
    # A short prompt takes what comes before the first token; no more than half of it, whatever disturbs the clock.
    more, teacher, learn = sizes.prompt - DECODE_PROMPT, fastest["teacher"], fastest["learn"]
    prefill = max(fastest["prefill"] - fastest["short"], fastest["prefill"] / 2) * sizes.prompt / more
    decode = {rows: fastest[rows] for rows in DECODE_ROWS}
    work = Workload(
        prompt=sizes.prompt,
        answer=sizes.answer,
        context=2 * sizes.prompt,
        group=GROUP,
        problems=1,
        micro_batch=policy.budget,
        concurrency=GROUP,
        keep=False,
        support="top_k",
        bytes=4,
    )
    count, weights = operations(shape, work), shape.active_parameters
    flops = {rows: 2 * weights * rows / token for rows, token in decode.items()}
    speed = LayerSpeed(
        weights / shape.layers, count.prefill / prefill, count.teacher / teacher, count.learn / learn, flops
    )
    tokens = {"prefill": sizes.prompt / prefill}
    tokens |= {f"decode, {rows} rows": rows / token for rows, token in decode.items()}
    return tokens | {"learning": (sizes.prompt + GROUP * sizes.answer) / (teacher + learn)}, speed


def seconds(policy: MLXPolicy, sizes: Sizes) -> dict[str | int, float]:
    """Return the time of each phase, and of a token of so many rows."""
    clocks = {rows: generated(policy, DECODE_PROMPT, rows) for rows in DECODE_ROWS}
    decode: dict[str | int, float] = {rows: clock.token(DECODE_TOKENS) for rows, clock in clocks.items()}
    teacher, learn = learned(policy, sizes)
    prompts = {"prefill": generated(policy, sizes.prompt, 1).first, "short": clocks[1].first}
    return decode | prompts | {"teacher": teacher, "learn": learn}


def generated(policy: MLXPolicy, prompt: int, rows: int) -> Clock:
    """Decode rows after a prompt of so many tokens."""
    params = SamplingParams(DECODE_TOKENS, temperature=1.0, top_p=1.0, eos_ids=frozenset(), concurrency=rows)
    clock = Clock(time.perf_counter())
    list(policy.generate([ids(prompt)], params, [list(range(rows))], clock))
    return clock


def learned(policy: MLXPolicy, sizes: Sizes) -> tuple[float, float]:
    """Return the seconds of the teacher's passes and of the rest of a learning step."""
    prompt, context, samples = ids(sizes.prompt), ids(2 * sizes.prompt), []
    for index in range(GROUP):
        response = ids(sizes.answer, index + 1)
        samples.append(
            DistillSample(
                problem_id="self-test",
                index=index,
                student_ids=np.concatenate([prompt, response]),
                student_span=(prompt.size, prompt.size + response.size),
                teacher_ids=np.concatenate([context, response]),
                teacher_span=(context.size, context.size + response.size),
                rollout_logps_T=np.full(response.size, -6.0, np.float32),
            )
        )
    begun = time.perf_counter()
    update = policy.learn(samples, ObjectiveConfig(), 1e-5)
    return update.teacher_seconds, time.perf_counter() - begun - update.teacher_seconds


def sampling() -> float:
    """Return how many entries of a vocabulary are sampled from in a second, of all rows."""
    sampler = RowSampler(SamplingParams(SAMPLED_TOKENS, temperature=1.0, top_p=1.0, eos_ids=frozenset()))
    for row in range(SAMPLED_ROWS):
        sampler.admit(row, row)
    logits = mx.random.normal((SAMPLED_ROWS, SAMPLED_WORDS), key=mx.random.key(0))
    spent = []
    for _ in range(SAMPLED_TOKENS):
        begun = time.perf_counter()
        mx.eval(sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True)))
        sampler.next_token()
        spent.append(time.perf_counter() - begun)
    return SAMPLED_ROWS * SAMPLED_WORDS / min(spent)


def ids(count: int, seed: int = 0) -> IntArray:
    """Return random tokens."""
    return np.random.default_rng(seed).integers(VOCABULARY, size=count).astype(np.int32)
