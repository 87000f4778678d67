"""The part of the self-test that runs before training on a GPU: the gradient of the loaded model's architecture.

A small random model of that architecture (`models/reduced.py`), with the loaded one's quantization, computes the
gradient of short texts on this device, in float32 and in the loaded one's type, and in float32 on the CPU. It takes
seconds whatever the size of the loaded model. A pass is cached for this machine, its system, the versions of mlx
and sdpo, and the small model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np

from sdpo_mlx.backends import gradient_check
from sdpo_mlx.backends.mlx.device import machine
from sdpo_mlx.backends.mlx.policy import MLXPolicy
from sdpo_mlx.backends.mlx.self_test.gradients import SEGMENTS, SMALL, difference, numpy
from sdpo_mlx.backends.mlx.self_test.models import VOCABULARY, on_cpu, open_folder, write
from sdpo_mlx.core.errors import ConfigError, SelfTestError
from sdpo_mlx.core.machine_cache import read_cached, write_cached
from sdpo_mlx.models.reduced import reduced

KIND = "self-test"  # folder of the cache
RESPONSES = (5, 3)  # tokens
EXACT = 2e-2  # of an array of the gradient, in float32: see `BOUNDS` of the whole self-test
# Of the whole gradient, in 16 bits: bfloat16 on a CPU differs by up to 0.1, with gated delta by up to 0.4. That leaves
# what is zero, doubled, or not a number; the same kernels in float32 are held to EXACT.
ROUNDED = 0.7
UNKNOWN = "the self-test has no small model of this architecture: its gradient was not compared with the CPU's"

FIX = (
    "do not train on this device: report the output of `sdpo doctor --self-test`, and use another version of mlx, "
    "--set model.dtype=float32, or --backend torch"
)


def check(policy: MLXPolicy) -> tuple[str, ...]:
    """Raise SelfTestError if the device computes a wrong gradient; return a warning if that cannot be known.

    A CPU passes: there is nothing to compare it with.
    """
    if policy.info.device == "cpu":
        return ()
    try:
        config = reduced(json.loads((policy.path / "config.json").read_text(encoding="utf-8")))
    except (ConfigError, ArithmeticError, AttributeError, TypeError):
        return (UNKNOWN,)
    dtype, depends_on = policy.info.dtype, [*machine(), policy.info.dtype, json.dumps(config, sort_keys=True)]
    if read_cached(KIND, depends_on):
        return ()
    with TemporaryDirectory(prefix="sdpo-self-test-") as name:
        folder = Path(name)
        try:
            with on_cpu():
                write(folder, config)
                expected = open_folder(folder, "float32")
        except Exception:  # an architecture may refuse small sizes in any way
            return (UNKNOWN,)
        found = {each: _worst(folder, each, expected) for each in dict.fromkeys(("float32", dtype))}
    write_cached(KIND, depends_on, {"date": date.today().isoformat(), "gradient": found})
    return ()


def _worst(folder: Path, dtype: str, expected: MLXPolicy) -> float:
    """Return the largest difference of all; raise SelfTestError at the first above the bound, or if none is found."""
    worst, bound = 0.0, EXACT if dtype == "float32" else ROUNDED
    try:
        for tokens, gap in gaps(open_folder(folder, dtype), expected, SMALL if dtype == "float32" else 1.0):
            if gap > bound:
                what = f"the gradient after a prompt of {tokens} tokens in {dtype} differs from the CPU's by {gap:.2g}"
                raise SelfTestError(f"the self-test failed: {what}, more than {bound}", fix=FIX)
            worst = max(worst, gap)
    except SelfTestError:
        raise
    except Exception as error:  # what this device cannot do may fail in any way
        what = " ".join(str(error).split())[:200]
        raise SelfTestError(f"the self-test failed: the gradient in {dtype} fails: {what}", fix=FIX) from error
    return worst


def gaps(policy: MLXPolicy, expected: MLXPolicy, small: float) -> Iterator[tuple[int, float]]:
    """Yield, for each length of a prompt, the largest relative difference (`gradients.difference`)."""
    for tokens in SEGMENTS:
        rng = np.random.default_rng(tokens)
        prompt, *responses = (rng.integers(VOCABULARY, size=size).astype(np.int32) for size in (tokens, *RESPONSES))
        pairs = [(prompt, response) for response in responses]
        with on_cpu():
            right = numpy(gradient_check.gradient(expected, pairs))
        found = gradient_check.gradient(policy, pairs)
        mx.eval(found)
        yield tokens, float(np.nan_to_num(difference(found, right, small), nan=np.inf))
