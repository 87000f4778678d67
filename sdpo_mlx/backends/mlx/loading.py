"""Loads a folder of safetensors and chooses how the model learns: the first way that does not change its output.

mlx-lm reads the weights; remote code and pickles were refused before (`models/resolve.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sdpo_mlx.backends.mlx.adapter import has_experts
from sdpo_mlx.backends.mlx.device import has_metal
from sdpo_mlx.backends.mlx.generic import GenericSplit, evaluated_by_layer
from sdpo_mlx.backends.mlx.mlx_lm_api import load_model, make_prompt_cache
from sdpo_mlx.backends.mlx.model import Model, SplitModel
from sdpo_mlx.backends.packing import pack
from sdpo_mlx.config import ModelConfig
from sdpo_mlx.core.errors import ConfigError

PARITY_TOLERANCE = 2e-2  # of one probability, in 16 bits: bfloat16 keeps eight
EXACT_TOLERANCE = 1e-4  # total variation of a distribution, in float32: recurrent layers come out near 1e-5

UNTRAINED_ON_METAL = {"kimi_k3": "a kernel between its blocks has no backward pass"}

Way = Callable[[nn.Module], SplitModel | GenericSplit]


@dataclass(frozen=True)
class Checked:
    """What the checks found: how the model is taken apart, whether prompts are shared and rows decoded together."""

    way: Way
    shares: bool
    dtype: mx.Dtype
    batched: bool


# By the folder's files and dtype: `compare`, a judge or Python code may open the same base several times.
CHECKED: dict[tuple[object, ...], Checked] = {}


def load(path: Path, cfg: ModelConfig) -> tuple[Model, dict[str, Any]]:
    """Return the model in evaluation mode and its config; raise ConfigError if it cannot be read or trained."""
    try:
        whole, config = load_model(path, lazy=True)
        prepared(whole)
        # The CPU's 16-bit products are twenty times slower than its float32 ones.
        dtype = "float32" if cfg.dtype == "auto" and device_name() == "cpu" else cfg.dtype
        if dtype != "auto":
            whole.set_dtype(getattr(mx, dtype))
        mx.eval(whole.parameters())  # lazy loading finds a truncated file only here
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RuntimeError, SystemExit) as error:
        raise ConfigError(
            f"the model cannot be loaded: {' '.join(str(error).split())[:200] or type(error).__name__}",
            where=path.name,
            fix="use a folder with config.json and safetensors of an architecture that mlx-lm knows",
        ) from error
    refuse_on_metal(whole)
    text = config.get("text_config", config)
    vocab_size = int(text.get("vocab_size") or whole(mx.zeros((1, 1), mx.int32)).shape[-1])
    files = [(each, each.stat().st_size, each.stat().st_mtime_ns) for each in sorted(path.iterdir())]
    key = (dtype, *files)
    if key not in CHECKED:
        with evaluated_by_layer(whole):
            CHECKED[key] = checked(whole, vocab_size)
    return taken_apart(whole, vocab_size, CHECKED[key]), text


def refuse_on_metal(whole: nn.Module) -> None:
    """Raise ConfigError if there is an Apple GPU and mlx-lm computes this architecture there as it cannot be trained.

    Kimi K3 mixes the outputs of its blocks in a kernel that has no backward pass. One function that it compiles decodes
    with the adapter of the first call whatever is learned afterwards.
    """
    name = type(whole).__module__.rpartition(".")[2]
    if has_metal() and name in UNTRAINED_ON_METAL:
        raise ConfigError(
            f"the architecture {name!r} cannot be trained on Metal: {UNTRAINED_ON_METAL[name]}",
            where="model.name",
            fix="use a model of another architecture (docs/models.md lists them), or --backend torch",
        )


def prepared(whole: nn.Module) -> None:
    """Put a model that mlx-lm has built into evaluation mode."""
    if not hasattr(whole, "_no_grad"):
        nn.Module.__init__(whole)  # which mlx-lm 0.32.2 forgets in recurrent_gemma
    whole.eval()


def taken_apart(whole: nn.Module, vocab_size: int, found: Checked) -> Model:
    """Return the model with its way of learning and of generating."""
    return Model(whole, found.way(whole), vocab_size, found.dtype, found.shares, found.batched)


def checked(whole: nn.Module, vocab_size: int) -> Checked:
    """Return the best way of learning and of generating; raise ConfigError if the model cannot learn."""
    way, shares = split(whole, vocab_size)
    one = np.zeros(1, np.int32)
    hidden_RD = way(whole).forward(pack([one], [one], 1, share=shares)[0])
    return Checked(way, shares, hidden_RD.dtype, check_batching(whole, vocab_size))


def split(whole: nn.Module, vocab_size: int) -> tuple[Way, bool]:
    """Return the best way of learning whose parts give the whole model's distributions, and whether prompts are shared.

    Raise ConfigError if none does: learning would follow a wrong gradient.
    """
    ways: list[tuple[Way, bool]] = [
        *((make, share) for share in (True, False) for make in (SplitModel, GenericSplit)),
        (partial(GenericSplit, caches=False), False),
    ]
    reason = ""
    for make, share in ways:
        try:
            worst, limit = _difference(whole, make(whole), vocab_size, share)
        except Exception as error:  # an unknown layer may fail in any way
            reason = (
                f"its layers cannot be run apart from it ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
            )
            continue
        if worst <= limit:
            return make, share
        reason = f"its parts differ from the whole by {worst:.1e} in probability"
    kind = getattr(whole, "model_type", type(whole).__name__)
    raise ConfigError(
        f"the architecture {kind!r} cannot be trained yet: {reason}",
        where="model.name",
        fix="use a model of another architecture (docs/models.md lists them), or --backend torch",
    )


def _difference(
    whole: nn.Module, trunk: SplitModel | GenericSplit, vocab_size: int, share: bool
) -> tuple[float, float]:
    """Largest difference in probability between the parts and the whole on a small trie of prompts, and its limit."""
    ids = (np.arange(48, dtype=np.int32) * 37 + 11) % vocab_size
    # mlx-lm sorts the rows of experts from 64 on (mlx 3960, 4253).
    stem = np.tile(ids[:18], 4 if has_experts(whole) else 1)
    prompts = [np.append(stem, ids[20:23]), np.append(stem, ids[20:23]), np.append(stem, ids[30:36]), ids[40:43]]
    responses = [ids[1:7], ids[5:9], ids[3:8], ids[2:9]]
    worst, limit = 0.0, EXACT_TOLERANCE
    for unit in pack(prompts, responses, 10_000, share=share):
        found = trunk.head(trunk.forward(unit))
        for member, part in zip(unit.members, mx.split(found, np.cumsum(unit.counts)[:-1].tolist()), strict=True):
            prompt, response = prompts[member], responses[member]
            # With a cache, as in generation: without one, Gemma 3n does not share keys and values.
            logits = whole(mx.array(np.append(prompt, response[:-1]))[None], cache=make_prompt_cache(whole))
            logits = logits[0, prompt.size - 1 :]
            gap, limit = _gap(part, logits)
            worst = max(worst, gap)
    return worst, limit


def check_batching(whole: nn.Module, vocab_size: int) -> bool:
    """Return whether a row is decoded beside a longer one as it is alone (not so: mlx-lm 1906, 1908)."""
    long, short = [(i * 31 + 7) % vocab_size for i in range(9)], [(i * 17 + 3) % vocab_size for i in range(4)]
    caches = []
    for ids in (long, short):
        cache = make_prompt_cache(whole)
        whole(mx.array([ids[:-1]]), cache=cache)
        caches.append(cache)
    try:
        merged = [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
        rows = whole(mx.array([[long[-1]], [short[-1]]]), cache=merged)[1, -1]
    except Exception:  # a cache that cannot be merged may fail in any way
        return False
    gap, limit = _gap(rows, whole(mx.array([[short[-1]]]), cache=caches[1])[0, -1])
    return gap <= limit


def _gap(found: mx.array, expected: mx.array) -> tuple[float, float]:
    """Return the largest difference between distributions, given as logits (..., V), and its limit."""
    exact = expected.dtype == mx.float32
    gaps = mx.abs(mx.softmax(found.astype(mx.float32), axis=-1) - mx.softmax(expected.astype(mx.float32), axis=-1))
    gap = mx.max(mx.sum(gaps, axis=-1) / 2 if exact else gaps)
    return float(np.nan_to_num(np.array(gap), nan=np.inf)), EXACT_TOLERANCE if exact else PARITY_TOLERANCE


def device_name() -> str:
    """Return `gpu` on Metal, otherwise `cpu`."""
    return "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
