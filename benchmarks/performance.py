"""Compare our implementation with mlx-lm's and with simpler ways: `python benchmarks/performance.py --out FILE`.

A random Qwen3 of 8 layers (width 384, 32,000 tokens; the loss alone: 151,936) in float32. Both sides of a row alternate
in this process, after one round that is not counted. Medians and range of the rounds; peaks by MLX's counters above the
memory held before. The ratio is ours to theirs.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import numpy as np
from memory import qwen
from reporting import distill_sample, write_json

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.mlx import BLAS, blockwise
from sdpo_mlx.backends.mlx.policy import MLXPolicy
from sdpo_mlx.config import ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
from mlx_lm.generate import BatchGenerator, batch_generate  # isort: skip
from mlx_lm.sample_utils import make_sampler  # isort: skip
from mlx_lm.tuner.trainer import default_loss  # isort: skip

Work = Callable[[], Any]
MODEL = qwen(8, 384, 6, 2, 1_024, 32_000)
SHALLOW = qwen(4, 256, 4, 2, 768, 2_000)
DEEP = qwen(24, 256, 4, 2, 768, 2_000)
WORDS = 151_936


def main() -> None:
    """Measure every comparison, or those in `--only`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name, (aim, measure) in ROWS.items():
        if not options.only or name in options.only:
            for label, ours, theirs in measure():
                rows.append({"row": name, "case": label, "aim": aim, **beside(ours, theirs, options.rounds)})
                print(line(rows[-1]), flush=True)
                write_json(options.out, {"where": where(), "rows": rows})


def where() -> dict[str, str]:
    """Return machine and versions."""
    packages = {name: version(name) for name in ("mlx", "mlx-lm", "numpy")}
    return {"machine": f"{platform.system()} {platform.machine()}", "blas": BLAS, **packages}


def line(row: dict[str, Any]) -> str:
    """Return one row as text."""
    time_, peak = row["time"], row["peak"]
    held = [f"{peak[side] / 2**20:.0f}" for side in ("ours", "theirs")]
    return (
        f"{row['row']} ({row['case']}): {time_['ours']:.3f} s / {time_['theirs']:.3f} s = {time_['ratio']:.2f} "
        f"({time_['low']:.2f} to {time_['high']:.2f}), peak {' / '.join(held)} MB "
        f"= {peak['ratio']:.2f}; aim {row['aim']}"
    )


def beside(ours: Work, theirs: Work, rounds: int) -> dict[str, Any]:
    """Measure both sides alternately; return seconds and peaks."""
    seconds: list[tuple[float, float]] = []
    peaks = [0.0, 0.0]
    for turn in range(rounds + 1):
        pair = []
        for side, work in enumerate((ours, theirs)):
            spent, peak = timed(work)
            pair.append(spent)
            peaks[side] = max(peaks[side], peak)
        if turn:
            seconds.append((pair[0], pair[1]))
    ratios = sorted(a / b for a, b in seconds)
    medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
    return {
        "time": {
            "ours": medians[0],
            "theirs": medians[1],
            "ratio": statistics.median(ratios),
            "low": ratios[0],
            "high": ratios[-1],
        },
        "peak": {"ours": peaks[0], "theirs": peaks[1], "ratio": peaks[0] / peaks[1] if peaks[1] else float("nan")},
    }


def timed(work: Work) -> tuple[float, float]:
    """Return the seconds, and the peak above the memory held before."""
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    held, begun = mx.get_active_memory(), time.perf_counter()
    work()
    mx.synchronize()
    return time.perf_counter() - begun, mx.get_peak_memory() - held


def opened(config: dict[str, Any], **train: Any) -> MLXPolicy:
    """Return a policy with random weights; layer by layer unless `grad_checkpoint` is given."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    from small_models import write_config

    folder = write_config(Path(mkdtemp(prefix="sdpo-bench-")), config)
    settings = TrainConfig(**{"grad_checkpoint": True, "micro_batch_tokens": 65_536, **train})
    policy = MLXPolicy(folder, ModelConfig(dtype="float32"), TeacherConfig(), settings)
    policy.load_state(policy.state())
    return policy


def samples(vocabulary: int, prompt: int, group: int, answer: int, context: int, *, own: bool = False) -> Any:
    """Return the samples of a group; with `own`, each has its own prompt and context, so that nothing is shared."""
    rng = np.random.default_rng(0)

    def draw(size: int) -> Any:
        return rng.integers(vocabulary, size=size).astype(np.int32)

    shared, found = (draw(prompt), draw(context)), []
    for index in range(group):
        student, teacher = (draw(prompt), draw(context)) if own else shared
        logps = np.full(answer, -np.log(vocabulary), np.float32)
        found.append(distill_sample(index, student, teacher, draw(answer), logps))
    return found


def unshared(policy: MLXPolicy, work: Work) -> Work:
    """Return the same work without shared prefixes."""

    def run() -> None:
        model = policy.model
        policy.model = replace(model, shares=False)
        work()
        policy.model = model

    return run


def generation() -> Any:
    """Compare sampling a group with `batch_generate`, which reads the prompt once per rollout."""
    policy, group = opened(MODEL), 8

    class Plain:
        """The part of a tokenizer that `batch_generate` needs."""

        eos_token_ids = frozenset[int]()

        def decode(self, ids: Any) -> str:
            return str(len(ids))

    for prompt, new in ((64, 32), (512, 32), (512, 128), (2_048, 32)):
        ids = np.arange(prompt, dtype=np.int32) % MODEL["vocab_size"]
        sampling = SamplingParams(new, 1.0, 1.0, frozenset())
        yield (
            f"prompt {prompt}, {new} new",
            lambda ids=ids, sampling=sampling: list(policy.generate([ids], sampling, [list(range(group))])),
            lambda ids=ids, new=new: batch_generate(
                policy.model.whole, Plain(), [ids.tolist()] * group, max_tokens=new, sampler=make_sampler(1.0)
            ),
        )


def decoding() -> Any:
    """Compare decoding, without the prompt, with the bare `BatchGenerator` at the same batch size."""
    policy, group, ids = opened(MODEL), 8, np.array([1, 2], np.int32)
    for new in (64, 256):

        def bare(new: int = new) -> None:
            generator = BatchGenerator(
                policy.model.whole,
                max_tokens=new,
                stop_tokens=[],
                sampler=make_sampler(1.0),
                prefill_batch_size=group,
            )
            generator.insert([ids.tolist()] * group)
            while generator.next_generated():
                pass
            generator.close()

        sampling = SamplingParams(new, 1.0, 1.0, frozenset())
        yield f"{new} new", lambda s=sampling: list(policy.generate([ids], s, [list(range(group))])), bare


def loss() -> Any:
    """Compare head and loss in chunks with all logits at once: 151,936 tokens, 8 x 128 positions."""
    from sdpo_mlx.backends.loss_head import Rows
    from sdpo_mlx.backends.mlx.losses import row_loss

    rows, width = 1_024, 128
    weights = mx.random.normal((WORDS, width), key=mx.random.key(0)) * 0.05
    student, teacher = (mx.random.normal((rows, width), key=mx.random.key(i)) for i in (1, 2))
    zero = mx.zeros(rows)
    all_rows = Rows(mx.zeros(rows, dtype=mx.int32), zero - 12, zero + 1 / rows, zero, zero, zero + 0.1)
    mx.eval(weights, student, teacher)
    for objective in (
        ObjectiveConfig(support="full"),
        ObjectiveConfig(),
        ObjectiveConfig(support="sampled", alpha=1.0),
    ):

        def part(hidden: mx.array, span: slice, objective: ObjectiveConfig = objective) -> mx.array:
            own = Rows(**{name: array[span] for name, array in vars(all_rows).items()})
            return row_loss(hidden @ weights.T, teacher[span] @ weights.T, own, objective, 1.0)[0]

        def direct(part: Any = part) -> None:
            mx.eval(mx.value_and_grad(lambda h: part(h, slice(0, rows)))(student))

        def chunked(part: Any = part) -> None:
            size = max(16, 16 * 2**20 // (4 * WORDS))
            for start in range(0, rows, size):
                span = slice(start, min(start + size, rows))
                mx.eval(mx.value_and_grad(lambda h, span=span: part(h, span))(student[span]))

        yield objective.support, chunked, direct


def learning_shared() -> Any:
    """Compare the learning step of a group with the same without shared prefixes."""
    policy = opened(MODEL)
    given = samples(MODEL["vocab_size"], 512, 8, 64, 512)

    def learn() -> None:
        policy.learn(given, ObjectiveConfig(), 1e-5)

    yield "prompt 512, n = 8, answers 64", learn, unshared(policy, learn)


def teaching() -> Any:
    """Compare the teacher's pass if a group shares a demonstration, and if contexts share only a prefix."""
    policy, vocabulary = opened(MODEL), MODEL["vocab_size"]
    shared = samples(vocabulary, 512, 8, 64, 1_024)
    alike = samples(vocabulary, 512, 8, 64, 1_024)
    for index, sample in enumerate(alike):
        sample.teacher_ids[768:1_024] = np.random.default_rng(index).integers(vocabulary, size=256)
    for label, given in (("one demonstration", shared), ("first three quarters alike", alike)):

        def teach(given: Any = given) -> None:
            policy.score("teacher", [s.teacher_ids for s in given], [s.teacher_span for s in given])

        yield label, teach, unshared(policy, teach)


def step_beside_sft() -> Any:
    """Compare the learning step, teacher included, with mlx-lm's LoRA loss on the same tokens plus the teacher."""
    vocabulary = MODEL["vocab_size"]
    for keep in (True, False):
        policy = opened(MODEL, grad_checkpoint=not keep)
        whole = policy.model.whole
        for label, own in (("nothing shared", True), ("prompt 512, n = 8", False)):
            given = samples(vocabulary, 512, 8, 64, 512, own=own)
            student = mx.array(np.stack([s.student_ids for s in given]))
            teacher = mx.array(np.stack([s.teacher_ids for s in given]))
            lengths = mx.array([[512, 576]] * 8)

            def learn(policy: MLXPolicy = policy, given: Any = given) -> None:
                policy.learn(given, ObjectiveConfig(), 1e-5)

            def sft(whole: Any = whole, student: Any = student, teacher: Any = teacher, lengths: Any = lengths) -> None:
                (value, _), grads = nn.value_and_grad(whole, default_loss)(whole, student, lengths)
                mx.eval(value, grads)
                mx.eval(whole(teacher))

            yield f"{label}, {'one graph' if keep else 'by block'}", learn, sft


def backward() -> Any:
    """Compare 24 layers learned layer by layer with one graph."""
    blocks, graph = opened(DEEP), opened(DEEP, grad_checkpoint=False)
    given = samples(DEEP["vocab_size"], 2, 4, 512, 2, own=True)
    objective = ObjectiveConfig(support="sampled", alpha=1.0)
    for sample in given:
        assert sample.ids_T.size == 512
    yield (
        "24 blocks, 4 x 512",
        lambda: blocks.learn(given, objective, 1e-5),
        lambda: graph.learn(given, objective, 1e-5),
    )


def composed_attention() -> Any:
    """Compare learning with the attention that has a gradient on Metal with learning with MLX's own for every call."""
    for width in (8, 64):
        policy, vocabulary = opened({**SHALLOW, "head_dim": width}), SHALLOW["vocab_size"]
        given = [each for more in range(4) for each in samples(vocabulary, 64 + more, 2, 6, 64 + more)]

        def learn(policy: MLXPolicy = policy, given: Any = given) -> None:
            policy.learn(given, ObjectiveConfig(), 1e-5)

        def fused(learn: Work = learn) -> None:
            with patch.multiple(blockwise, differentiable_attention=nullcontext):
                learn()

        yield f"heads of {width}, rollouts of 6 tokens", learn, fused


ROWS = {
    "generation / batch_generate": ("time at most 0.4 at prompt 512, 32 new", generation),
    "generation / bare BatchGenerator": ("time at most 1.05", decoding),
    "loss / all logits at once": ("peak at most 0.10", loss),
    "learning step / unshared": ("time at most 0.30", learning_shared),
    "teacher / unshared": ("time at most 0.25 with one demonstration", teaching),
    "learning step / SFT + teacher": ("time at most 1.35, with a shared prompt 0.5", step_beside_sft),
    "block by block / one graph": ("peak at most 0.15, time at most 1.35", backward),
    "composed attention / MLX's": ("time at most 1.1", composed_attention),
}

if __name__ == "__main__":
    main()
