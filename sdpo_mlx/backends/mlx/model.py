"""A model taken apart: embedding, blocks, head. Learning walks it block by block instead of as one graph.

A block maps the nodes of a unit, shared prefixes (1, P, d) and rows (N, T, d), to the same shapes; what a prefix leaves
behind (keys and values, or a recurrent state) is computed once and broadcast to all that continue from it, inside the
gradient, so that nothing is approximated. Models with other parts learn by `generic.py`; `loading.py` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sdpo_mlx.backends.base import CHUNK_BYTES, PREFILL
from sdpo_mlx.backends.command_size import UNBOUNDED_SIZES, EvaluationSizes
from sdpo_mlx.backends.mlx.adapter import Weights, dropout
from sdpo_mlx.backends.mlx.generic import GenericSplit
from sdpo_mlx.backends.mlx.mlx_lm_api import ArraysCache, ConcatenateKVCache, create_causal_mask, make_prompt_cache
from sdpo_mlx.backends.packing import Unit
from sdpo_mlx.core.seeding import derive

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
    """Embedding, blocks and head of an mlx-lm model, callable one by one; LookupError if its parts are others."""

    way = "by block"

    def __init__(self, whole: nn.Module) -> None:
        outer, root = (whole.language_model, "language_model.") if "language_model" in whole else (whole, "")
        if not hasattr(outer, "model") or not hasattr(outer.model, "embed_tokens"):
            raise LookupError("its parts have other names")
        self.whole, self.inner, self.outer = whole, outer.model, outer
        self.blocks = list[Block]()
        for i, (layer, cache) in enumerate(zip(self.inner.layers, make_prompt_cache(whole), strict=True)):
            states = len(cache.cache) if isinstance(cache, ArraysCache) else 0
            block = Block(layer, f"{root}model.layers.{i}.", _window(self.inner, layer, i), states)
            # The text of the check at load is shorter than a window, so compare it with the model's own cache.
            if getattr(cache, "max_size", None) != block.window:
                raise LookupError(f"block {i} has another attention window")
            self.blocks.append(block)
        self.paths = tuple(block.path for block in self.blocks)

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

    def graph(self, unit: Unit, seed: int, *, recompute: bool) -> mx.array:
        """Return `forward` as one graph for a gradient, with dropout; `recompute` is what `blockwise.py` is for."""
        assert not recompute
        nodes = self.enter(unit)
        for index, block in enumerate(self.blocks):
            with dropout(self.whole, derive(seed, index)):
                nodes = block(nodes, unit)
        return read(nodes, unit)

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
    trunk: SplitModel | GenericSplit
    vocab_size: int
    dtype: mx.Dtype  # of hidden states
    shares: bool = True  # whether prompts that begin alike may run once
    batched: bool = True  # whether rollouts may be decoded side by side
    sizes: EvaluationSizes = UNBOUNDED_SIZES

    def piece(self, before: int = 0) -> int:
        """Return the tokens of a prompt that run at once after so many others."""
        return min(PREFILL, self.sizes.prefill_after(before))

    @property
    def chunk(self) -> int:
        """Response positions that the head sees at once."""
        return min(max(16, CHUNK_BYTES // (4 * self.vocab_size)), self.sizes.head_rows)

    def outside_layers(self, student: Weights) -> list[str]:
        """Return the trained weights of embedding, last norm and head: none with a LoRA inside the layers."""
        return [name for name in student if not name.startswith(self.trunk.paths)]


def _window(inner: nn.Module, layer: nn.Module, index: int) -> int | None:
    if getattr(layer, "use_sliding", False):
        return int(inner.sliding_window)
    pattern = getattr(inner, "sliding_window_pattern", None)
    if pattern and index % pattern != pattern - 1:
        return int(inner.window_size)
    return None
