"""Attention of one row that holds a tree of texts: each token attends to its ancestors and to itself.

A shared prompt then runs once without a cache that its rows copy. On CUDA, flex attention skips the blocks of the mask
that are empty and takes grouped keys as they are; a dense mask is what every attention accepts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers.cache_utils import DynamicCache, DynamicLayer

from sdpo_mlx.backends.torch.kv_cache import arguments
from sdpo_mlx.types import IntArray

Kind = Literal["flex", "dense"]
BLOCK = 128  # of flex attention's masks; rows of whole blocks have few lengths, and each length may be compiled


def kinds(whole: nn.Module, body: nn.Module, device: torch.device, recompute: bool) -> tuple[Kind, ...]:
    """The kinds of mask to try for a model, the best first.

    None without a GPU unless blocks run again (there a cache is as fast and cannot be used twice), and none if a layer
    does not attend to all tokens before it: windows and chunks count places in the row, and states have no mask.
    """
    takes = {"position_ids", "attention_mask"} <= arguments(type(body).forward)
    if not (takes and getattr(whole, "_supports_flex_attn", False)):
        return ()
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=body.config).layers):
        return ()
    if device.type == "cuda":
        return ("flex", "dense")
    return ("dense",) if recompute else ()


def mask_of(kind: Kind, config: Any, until_T: IntArray, dtype: torch.dtype, device: torch.device) -> Any:
    """The mask of a tree as the model's attention takes it, (1, 1, T, T)."""
    until = torch.from_numpy(until_T).to(device)
    if kind == "flex":

        def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < until[key])

        return create_block_mask(seen, None, None, until.numel(), until.numel(), str(device))
    place = torch.arange(until.numel(), device=device)
    seen_TT = (place <= place[:, None]) & (place[:, None] < until)
    if config._attn_implementation == "eager":  # adds the mask to its scores
        least = torch.finfo(dtype).min
        return torch.zeros((), dtype=dtype, device=device).where(seen_TT, least)[None, None]
    return seen_TT[None, None]


@contextmanager
def attention_of(kind: Kind, config: Any) -> Iterator[None]:
    """Inside, the model runs the attention that takes this kind of mask."""
    own = config._attn_implementation
    config._attn_implementation = "flex_attention" if kind == "flex" else own
    try:
        yield
    finally:
        config._attn_implementation = own
