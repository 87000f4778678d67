"""A model taken apart: embedding, blocks, head. Learning walks it block by block instead of as one graph.

A block maps the nodes of a unit, shared prefixes (1, P, d) and rows (N, T, d), to the same shapes; what a prefix leaves
behind (keys and values, or a recurrent state) is computed once and broadcast to all that continue from it, inside the
gradient, so that nothing is approximated. `check_parity` compares the parts with the whole model once at load; a
model that differs with shared prompts runs unshared, one that differs without is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sdpo_mlx.backends.base import CHUNK_BYTES
from sdpo_mlx.backends.mlx.mlx_lm_api import ArraysCache, ConcatenateKVCache, create_causal_mask, make_prompt_cache
from sdpo_mlx.backends.packing import Unit, pack
from sdpo_mlx.core.errors import ConfigError

PARITY_TOLERANCE = 2e-2  # bfloat16 keeps eight bits; float32 models come out near 1e-5
Nodes = list[mx.array]  # hidden states of a unit's nodes


@dataclass(frozen=True)
class Block:
    """One block, its parameters' dotted path, its attention window (None: all), its recurrent states (0: none)."""

    layer: nn.Module
    path: str
    window: int | None
    states: int = 0

    def __call__(self, entering: Sequence[mx.array], unit: Unit) -> Nodes:
        """The unit's nodes through the block; each attends to its ancestors, and causally to itself."""
        caches: list[Any] = []
        leaving = Nodes()
        for hidden, node in zip(entering, unit.nodes, strict=True):
            cache = self._after(None if node.parent is None else caches[node.parent], hidden.shape[0])
            mask, length = None if self.states else "causal", hidden.shape[1]
            if self.window is not None and length + cache.offset > self.window:
                mask = create_causal_mask(length, cache.offset, window_size=self.window)
            leaving.append(self.layer(hidden, mask, cache))
            caches.append(None if node.rows else cache)
        return leaving

    def _after(self, before: Any, rows: int) -> Any:
        """A cache for this many rows that continue from another cache."""
        cache = ArraysCache(self.states) if self.states else ConcatenateKVCache()
        if before is not None:
            arrays = before.cache if self.states else before.state
            shared = [mx.broadcast_to(array, (rows, *array.shape[1:])) for array in arrays]
            cache.state = (shared, None, None) if self.states else tuple(shared)
        return cache


class SplitModel:
    """Embedding, blocks and head of an mlx-lm model, callable one by one."""

    def __init__(self, model: nn.Module) -> None:
        outer, root = (model.language_model, "language_model.") if "language_model" in model else (model, "")
        if not hasattr(outer, "model") or not hasattr(outer.model, "embed_tokens"):
            raise _unsupported(model, "its parts have other names")
        self.inner, self.outer = outer.model, outer
        path = f"{root}model.layers"
        states_of = [len(each.cache) if isinstance(each, ArraysCache) else 0 for each in make_prompt_cache(model)]
        self.blocks = [
            Block(layer, f"{path}.{i}.", _window(self.inner, layer, i), states)
            for i, (layer, states) in enumerate(zip(self.inner.layers, states_of, strict=True))
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

    def enter(self, unit: Unit) -> Nodes:
        """The first block's input of each node."""
        return [self.embed(mx.array(node.ids_NT)) for node in unit.nodes]

    def forward(self, unit: Unit) -> mx.array:
        """Return a unit's hidden states (R, d) that predict its responses, evaluated block after block."""
        nodes = self.enter(unit)
        for block in self.blocks:
            nodes = block(nodes, unit)
            mx.eval(nodes)
        return read(nodes, unit)


def read(nodes: Sequence[mx.array], unit: Unit) -> mx.array:
    """Return the hidden states (R, d) of a unit that predict its responses."""
    flat = [hidden.reshape(-1, hidden.shape[-1]) for hidden, node in zip(nodes, unit.nodes, strict=True) if node.rows]
    return (flat[0] if len(flat) == 1 else mx.concatenate(flat))[mx.array(unit.take_R)]


@dataclass(frozen=True)
class Model:
    """What a gradient needs: the whole model, its parts, and the size of its vocabulary."""

    whole: nn.Module
    trunk: SplitModel
    vocab_size: int
    shares: bool = True  # whether prompts that begin alike may run once

    @property
    def chunk(self) -> int:
        """Response positions that the head sees at once."""
        return max(16, CHUNK_BYTES // (4 * self.vocab_size))


def check_parity(model: nn.Module, trunk: SplitModel, vocab_size: int) -> bool:
    """Return whether the parts give the whole model's distributions with shared prompts too, or only without.

    Raise ConfigError if they differ without: learning would follow a wrong gradient.
    """
    # Sliding windows are longer than the text below, so compare them with the model's own caches.
    for index, (block, cache) in enumerate(zip(trunk.blocks, make_prompt_cache(model), strict=False)):
        if getattr(cache, "max_size", None) != block.window:
            raise _unsupported(model, f"block {index} has an unsupported attention window")
    worst = 0.0
    for share in (True, False):
        try:
            worst = _difference(model, trunk, vocab_size, share)
        except Exception as error:  # an unknown block may fail in any way
            if not share:
                name = type(error).__name__
                raise _unsupported(model, f"its blocks cannot be run one by one ({name})") from error
            continue
        if worst <= PARITY_TOLERANCE:
            return share
    raise _unsupported(model, f"its parts differ from the whole by {worst:.1e} in probability")


def _difference(model: nn.Module, trunk: SplitModel, vocab_size: int, share: bool) -> float:
    """Largest difference in probability between the parts and the whole on a small trie of prompts."""
    ids = (np.arange(48, dtype=np.int32) * 37 + 11) % vocab_size
    stem = ids[:18]
    prompts = [np.append(stem, ids[20:23]), np.append(stem, ids[20:23]), np.append(stem, ids[30:36]), ids[40:43]]
    responses = [ids[1:7], ids[5:9], ids[3:8], ids[2:9]]
    worst = 0.0
    for unit in pack(prompts, responses, 10_000, share=share):
        found = mx.softmax(trunk.head(trunk.forward(unit)).astype(mx.float32), axis=-1)
        for member, part in zip(unit.members, mx.split(found, np.cumsum(unit.counts)[:-1].tolist()), strict=True):
            prompt, response = prompts[member], responses[member]
            logits = model(mx.array(np.append(prompt, response[:-1]))[None])[0, prompt.size - 1 :]
            gap = mx.max(mx.abs(part - mx.softmax(logits.astype(mx.float32), axis=-1)))
            worst = max(worst, float(np.nan_to_num(np.array(gap), nan=np.inf)))
    return worst


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
        fix="use a llama, qwen2, qwen3, qwen3.5, gemma3, smollm or phi3 model",
    )
