"""The model as a body, which makes hidden states of ids, and a head, which makes logits of those.

The head is the whole model around a body that returns given hidden states: scales, biases and soft-caps of the logits
are the model's own, whatever they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from sdpo_mlx.backends.base import TORCH_CHUNK_BYTES
from sdpo_mlx.backends.packing import Tree
from sdpo_mlx.backends.torch.kv_cache import continued, shared
from sdpo_mlx.backends.torch.out_of_memory import free_bytes
from sdpo_mlx.backends.torch.tree_attention import BLOCK, Kind, attention_of, mask_of

LARGEST_CHUNK = 512 * 2**20  # of TORCH_CHUNK_BYTES on a GPU with free memory: each chunk reads the whole output layer
HEAD_SHARE = 0.01  # of the free memory for one copy of a chunk's logits


@dataclass(frozen=True)
class Model:
    """The whole model and its body (ids to the last hidden states); its head makes logits of those."""

    whole: nn.Module
    body: nn.Module
    vocab_size: int
    device: torch.device
    shares: bool = True  # whether prompts that begin alike may run once
    batched: bool = True  # whether rollouts may be decoded side by side
    sharded: bool = False  # whether the blocks are split over ranks (`sharding.py`)
    recompute: bool = False  # run each block again in the backward pass instead of keeping its activations
    tree: Kind | None = None  # the mask with which prompts that begin alike may run in one row, while learning

    @property
    def head(self) -> nn.Module:
        """The output layer; an adapter may have wrapped it since the model was loaded."""
        return self.whole.get_output_embeddings()

    @property
    def chunk(self) -> int:
        """Response positions that the head sees at once."""
        return max(16, chunk_bytes(self.device) // (4 * self.vocab_size))

    def hidden(self, rows_NT: Tensor, prefix: DynamicCache | None = None) -> Tensor:
        """Last hidden states (N, T, d) of right-padded rows that continue from a shared prefix."""
        if prefix is not None:
            return states_of(continued(self.body, rows_NT, shared(prefix, rows_NT.shape[0])))
        with self._recomputing():
            return states_of(self.body(input_ids=rows_NT, use_cache=False))

    def tree_hidden(self, tree: Tree) -> Tensor:
        """Last hidden states (T, d) of all tokens of a tree in one row: no cache, no copy of a shared prefix."""
        assert self.tree is not None
        tree = tree.padded(BLOCK) if self.tree == "flex" else tree
        ids, places = (torch.from_numpy(each).long().to(self.device)[None] for each in (tree.ids_T, tree.positions_T))
        mask = mask_of(self.tree, self.body.config, tree.until_T, self.whole.dtype, self.device)
        attention = partial(attention_of, self.tree, self.body.config)
        with self._recomputing(attention), attention():
            return states_of(self.body(input_ids=ids, position_ids=places, attention_mask=mask, use_cache=False))[0]

    def _recomputing(
        self, again: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> AbstractContextManager[None]:
        """Inside, a block keeps only its input for the backward pass, if the model is to, and runs again in `again`."""
        return _recomputed(self.whole, again) if self.recompute and torch.is_grad_enabled() else nullcontext()

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits (R, V) of hidden states."""
        output = _Output(last_hidden_state=hidden_RD[None])
        with _replaced(self.body, lambda *_, **__: output):
            ids = torch.zeros((1, 1), dtype=torch.long, device=self.device)
            logits: Tensor = self.whole(input_ids=ids, use_cache=False).logits[0]
        return logits


def chunk_bytes(device: torch.device) -> int:
    """Bytes of one float32 copy of the logits: on CUDA by free memory, in powers of two, so that it seldom changes."""
    free = free_bytes(device) if device.type == "cuda" else None
    if free is None:
        return TORCH_CHUNK_BYTES
    share: int = 2 ** int(math.log2(max(1.0, HEAD_SHARE * free)))
    return min(max(share, TORCH_CHUNK_BYTES), LARGEST_CHUNK)


class _Output(BaseModelOutput):
    """What a body returns; fields that only some bodies have are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def states_of(output: Any) -> Tensor:
    """The last hidden states of what a body returned: first in every order."""
    states: Tensor = output[0]
    return states


def body_of(whole: nn.Module) -> nn.Module:
    """The part that makes hidden states of ids; `get_decoder` of some models returns the whole."""
    found: nn.Module = whole.get_decoder()
    return found if found is not whole else next(e for e in whole.children() if isinstance(e, PreTrainedModel))


def blocks(whole: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of each block of the text model: its largest list of modules that is in no other list."""
    body = body_of(whole)
    root = next(path for path, each in whole.named_modules() if each is body)
    lists = [(path, each) for path, each in body.named_modules() if isinstance(each, nn.ModuleList)]
    outer = [(p, each) for p, each in lists if not any(p.startswith(f"{other}.") for other, _ in lists)]
    path, found = max(outer, key=lambda item: sum(each.numel() for each in item[1].parameters()))
    return [(".".join(filter(None, (root, path, str(index)))), block) for index, block in enumerate(found)]


@contextmanager
def _recomputed(whole: nn.Module, again: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside, a block keeps only its input, and runs again inside `again` (torch.utils.checkpoint)."""
    layers = [(layer, layer.forward) for _, layer in blocks(whole)]
    for layer, forward in layers:
        layer.forward = partial(checkpoint, forward, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))
    try:
        yield
    finally:
        for layer, _ in layers:
            del layer.forward


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, a module runs another function."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
