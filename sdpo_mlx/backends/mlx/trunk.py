"""A model taken apart: embedding, blocks, head. Learning walks it block by block instead of as one graph.

A block maps the prefix (1, P, d) and the rows (n, T, d) of a group to the same shapes; the prefix's keys and
values are computed once and broadcast to the rows, inside the gradient, so that nothing is approximated.
`check_parity` compares the parts with the whole model once at load; a model that differs is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import ConcatenateKVCache, make_prompt_cache

from sdpo_mlx.errors import ConfigError

CHUNK_BYTES = 16 * 2**20  # one float32 copy of a chunk's logits; some 15 (top-k) to 25 (full) of it live at once
PARITY_TOLERANCE = 2e-2  # bfloat16 keeps eight bits; float32 models come out near 1e-5


@dataclass(frozen=True)
class Block:
    """One transformer block, the dotted path of its parameters, and its attention window (None: all)."""

    layer: nn.Module
    path: str
    window: int | None

    def __call__(self, prefix_1PD: mx.array | None, rows_NTD: mx.array) -> tuple[mx.array | None, mx.array]:
        """Prefix and rows through the block; the rows attend to the prefix and causally to themselves."""
        cache = ConcatenateKVCache()
        if prefix_1PD is None:
            return None, self.layer(rows_NTD, self._mask(rows_NTD.shape[1], 0), cache)
        prefix = self.layer(prefix_1PD, self._mask(prefix_1PD.shape[1], 0), cache)
        offset, n = cache.offset, rows_NTD.shape[0]
        shared = ConcatenateKVCache()
        shared.state = tuple(mx.broadcast_to(array, (n, *array.shape[1:])) for array in cache.state)
        return prefix, self.layer(rows_NTD, self._mask(rows_NTD.shape[1], offset), shared)

    def _mask(self, length: int, offset: int) -> Any:
        if self.window is not None and length + offset > self.window:
            return create_causal_mask(length, offset, window_size=self.window)
        return "causal"


class Trunk:
    """Embedding, blocks and head of an mlx-lm model, callable one by one."""

    def __init__(self, model: nn.Module) -> None:
        outer, root = (model.language_model, "language_model.") if "language_model" in model else (model, "")
        if not hasattr(outer, "model") or not hasattr(outer.model, "embed_tokens"):
            raise _unsupported(model, "its parts have other names")
        self.inner, self.outer = outer.model, outer
        path = f"{root}model.layers"
        self.blocks = [
            Block(layer, f"{path}.{i}.", _window(self.inner, layer, i)) for i, layer in enumerate(self.inner.layers)
        ]

    def embed(self, ids_NT: mx.array) -> mx.array:
        """Token ids (N, T) to the first block's input (N, T, d)."""
        hidden = self.inner.embed_tokens(ids_NT)
        if type(self.inner).__name__.startswith("Gemma"):
            # Gemma scales its embeddings, with the factor rounded to bfloat16 as when it was trained.
            scale = mx.array(hidden.shape[-1] ** 0.5, mx.bfloat16)
            return hidden * scale.astype(hidden.dtype)
        return hidden

    def head(self, hidden_RD: mx.array) -> mx.array:
        """The last block's output (R, d) to logits (R, V)."""
        hidden = self.inner.norm(hidden_RD)
        if "lm_head" in self.outer:
            return self.outer.lm_head(hidden)
        return self.inner.embed_tokens.as_linear(hidden)

    def forward(self, prefix_P: mx.array | None, rows_NT: mx.array) -> mx.array:
        """Token ids through embedding and blocks, evaluated block after block: (N, T, d)."""
        prefix = None if prefix_P is None else self.embed(prefix_P[None])
        rows = self.embed(rows_NT)
        for block in self.blocks:
            prefix, rows = block(prefix, rows)
            mx.eval(rows) if prefix is None else mx.eval(prefix, rows)
        return rows


@dataclass(frozen=True)
class Model:
    """The pieces that a gradient needs: the whole, its parts, and how many ids it speaks."""

    whole: nn.Module
    trunk: Trunk
    vocab_size: int

    @property
    def chunk(self) -> int:
        """Response positions that the head sees at once."""
        return max(16, CHUNK_BYTES // (4 * self.vocab_size))


def check_parity(model: nn.Module, trunk: Trunk, vocab_size: int) -> float:
    """Largest difference of log-probs between the parts, prefix shared, and the whole model.

    Raises ConfigError where they differ: learning would follow a wrong gradient.
    """
    _check_windows(model, trunk)
    ids = (mx.arange(24).reshape(2, 12) * 37 + 11) % vocab_size
    ids[1, :6] = ids[0, :6]
    whole = nn.log_softmax(model(ids)[:, 6:].astype(mx.float32), axis=-1)
    try:
        parts = nn.log_softmax(trunk.head(trunk.forward(ids[0, :6], ids[:, 6:])).astype(mx.float32), axis=-1)
    except Exception as error:  # a foreign block may fail in any way
        raise _unsupported(model, f"its blocks cannot be run one by one ({type(error).__name__})") from error
    worst = float(np.array(mx.max(mx.abs(mx.exp(whole) - mx.exp(parts)))))
    if not worst <= PARITY_TOLERANCE:
        raise _unsupported(model, f"its parts differ from the whole by {worst:.1e} in probability")
    return worst


def _check_windows(model: nn.Module, trunk: Trunk) -> None:
    """Sliding windows are longer than the parity check's text; the model's own caches tell where they are."""
    for index, (block, cache) in enumerate(zip(trunk.blocks, make_prompt_cache(model), strict=False)):
        if getattr(cache, "max_size", None) != block.window:
            raise _unsupported(model, f"block {index} attends to a window that is not understood")


def _window(inner: nn.Module, layer: nn.Module, index: int) -> int | None:
    if getattr(layer, "use_sliding", False):
        return int(inner.sliding_window)
    pattern = getattr(inner, "sliding_window_pattern", None)
    if pattern and index % pattern != pattern - 1:
        return int(inner.window_size)
    return None


def _unsupported(model: nn.Module, why: str) -> ConfigError:
    kind = getattr(model, "model_type", type(model).__name__)
    return ConfigError(
        f"the architecture {kind!r} cannot be trained yet: {why}",
        where="model.name",
        fix="use a llama, qwen2, qwen3, gemma3, smollm or phi3 model",
    )
