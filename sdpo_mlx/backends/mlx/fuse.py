"""Fuses an adapter into its base, as a model folder, and measures how much of the adapter that keeps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from sdpo_mlx.backends.mlx.mlx_lm_api import dequantize_model, load_adapters, load_model
from sdpo_mlx.backends.mlx.rewrite import write_model
from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.core.progress import StartTask, no_tasks, track
from sdpo_mlx.types import IntArray


def fuse(
    base: Path, adapter: Path, out: Path, prompts: Sequence[IntArray], *, quantized: bool, doing: StartTask = no_tasks
) -> dict[str, Any]:
    """Write the fused model to `out`. Return how far its next-token distributions are from those with the adapter.

    With `quantized` a quantized base stays so, which rounds part of the adapter away; otherwise it is dequantized. The
    figures are nats, means over all positions of the prompts: `adapter` is KL(with the adapter || base alone),
    `lost` is KL(with the adapter || fused). `kind` is `plain`, `dequantized` or `re-quantized`.
    """
    doing("loading the base")
    try:
        model, config = load_model(base)
        before = _log_probs(model, prompts)
        quantized_layers = [name for name, module in model.named_modules() if "scales" in module]
        model = load_adapters(model, str(adapter))
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        what = " ".join(str(error).split())[:200]
        raise ConfigError(f"the adapter does not fit its base: {what}", where=str(adapter)) from error
    model.eval()
    wanted = _log_probs(model, prompts)
    was = "quantization" in config
    adapted = [(name, module) for name, module in model.named_modules() if hasattr(module, "fuse")]
    fused = []
    for name, module in track(adapted, doing("adding the adapter, layers")):
        fused.append((name, module.fuse(dequantize=was and not quantized)))
    model.update_modules(tree_unflatten(fused))
    if was and not quantized:
        model = dequantize_model(model)
        for key in ("quantization", "quantization_config"):
            config.pop(key, None)
    doing("measuring what it kept")
    got = _log_probs(model, prompts)
    doing("writing the fused model")
    trained: Any = mx.load(str(adapter / "adapters.safetensors"))
    changed = {name.rpartition(".")[0] for name in trained} | set(() if quantized else quantized_layers)
    try:
        write_model(base, out, model, changed, config)
    except RuntimeError as error:  # MLX raises this if the disk is full or not writable
        fix = "free some space and run the same command again"
        raise StorageError(f"cannot write: {error}", where=str(out), fix=fix) from error
    for file in base.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
    kind = "plain" if not was else "re-quantized" if quantized else "dequantized"
    return {"kind": kind, "adapter": _divergence(wanted, before), "lost": _divergence(wanted, got)}


def _log_probs(model: nn.Module, prompts: Sequence[IntArray]) -> list[Any]:
    found = []
    for ids in prompts:
        logits = model(mx.array(ids)[None])[0].astype(mx.float32)
        found.append(np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True)).astype(np.float64))
    return found


def _divergence(wanted: list[Any], got: list[Any]) -> float:
    """Mean KL(wanted || got) over all positions, in nats."""
    rows = [(np.exp(p) * (p - q)).sum(-1) for p, q in zip(wanted, got, strict=True)]
    return max(0.0, float(np.concatenate(rows).mean()))


def count_weights(folder: Path) -> int:
    """Return how many weights `float_weights` yields; only the files' headers are read."""
    loaded: list[Any] = [mx.load(str(file)) for file in folder.glob("*.safetensors")]
    return sum(map(len, loaded))


def float_weights(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield each weight of a folder by name, as float32 numpy."""
    for file in sorted(folder.glob("*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        for name, array in loaded.items():
            yield name, np.array(array.astype(mx.float32))
