"""The type of the weights on a CPU for `model.dtype: auto`: bfloat16 if it is fast there and agrees with float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from sdpo_mlx.backends.torch.model import blocks, body_of
from sdpo_mlx.config import ModelConfig
from sdpo_mlx.models.safetensors_io import read_headers

FLOATS = {"F64", "F32", "F16", "BF16"}  # codes of safetensors
TOKENS = 48  # of the text on which both types are compared
# Mean KL divergence of the next-token distributions in nats per token. An update of LoRA moves them by more; a layer
# that loses its small numbers in 16 bits, such as a recurrence, is far beyond.
LARGEST_KL = 1e-2


def multiplies_bfloat16() -> bool:
    """Return whether this processor has instructions for it (avx512_bf16, AMX); False if torch cannot tell."""
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def candidate(path: Path, cfg: ModelConfig) -> str:
    """Return the type to try: bfloat16 if the weights are stored so, stay frozen, and this processor is fast with it.

    Weights stored in float16 would lose digits; those that are trained themselves are float32.
    """
    stored = {each["dtype"] for each in read_headers(path).values()} & FLOATS
    frozen = cfg.adapter.kind != "full" and cfg.bits is None
    return "bfloat16" if stored == {"BF16"} and frozen and multiplies_bfloat16() else "float32"


def disagreement(whole: nn.Module) -> str:
    """Return how a model in bfloat16 differs from the same weights in float32; blank if it agrees."""
    try:
        found = divergence(whole)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # an unknown layer may fail in any way
        return f"the comparison with float32 fails: {' '.join(str(error).split())[:120]}"
    return (
        "" if found <= LARGEST_KL else f"bfloat16 differs from float32 by a KL divergence of {found:.1e} nats a token"
    )


@torch.no_grad()
def divergence(whole: nn.Module) -> float:
    """Return the mean KL divergence of the model's distributions from those that float32 gives, in nats per token.

    Parameters are converted one block at a time, so that no second model is held.
    """
    rows = int(whole.get_input_embeddings().weight.shape[0])
    ids = ((torch.arange(TOKENS) * 37 + 11) % rows)[None]
    with _in_float32(whole):
        exact = torch.log_softmax(whole(input_ids=ids, use_cache=False).logits[0].float(), -1)
    rounded = torch.log_softmax(whole(input_ids=ids, use_cache=False).logits[0].float(), -1)
    return float((exact.exp() * (exact - rounded)).sum(-1).mean().nan_to_num(torch.inf))


@contextmanager
def _in_float32(whole: nn.Module) -> Iterator[None]:
    """Inside, the model computes on float32 copies of its parameters; those of a block exist while it runs."""
    layers = [block for _, block in blocks(whole)]
    held = {id(each) for block in layers for each in block.parameters()}
    outer = (body_of(whole), whole.get_output_embeddings())
    outside = {id(each): each for part in outer for each in part.parameters() if id(each) not in held}
    hooks = [hook for block in layers for hook in _converted(block)]
    try:
        with _as_float32(list(outside.values())):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _converted(block: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that convert a block's parameters while it runs."""
    running = ExitStack()

    def before(*_: object) -> None:
        running.enter_context(_as_float32(list(block.parameters())))

    def after(*_: object) -> None:
        running.close()

    return [block.register_forward_pre_hook(before), block.register_forward_hook(after, always_call=True)]


@contextmanager
def _as_float32(parameters: list[nn.Parameter]) -> Iterator[None]:
    stored = [each.data for each in parameters]
    try:
        for each in parameters:
            each.data = each.data.float()
        yield
    finally:
        for each, tensor in zip(parameters, stored, strict=True):
            each.data = tensor
