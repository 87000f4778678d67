"""Layers of a 16-bit base where numbers must not be lost or copied: the adapter, and the output layer.

peft converts the input of each adapted layer to the factors' float32, multiplies there and converts back; autograd
keeps that copy. Here the factors, which are small, are converted instead, and the input is kept as it is. Their
master copies, gradients and the optimizer stay float32.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from peft.tuners.lora import layer as peft_layer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def return_float32_logits(model: Any) -> None:
    """Let a frozen output layer in 16 bits return float32: logits above 16 have steps of 0.125 in bfloat16."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.weight.dtype in SIXTEEN_BITS and not head.weight.requires_grad:
        head.forward = partial(_float32_linear, head)


def fuse_adapter(model: nn.Module) -> None:
    """Let LoRA layers on 16-bit linear layers run `_LowRank`; DoRA, quantized and float32 bases keep peft's forward."""
    for module in model.modules():
        if type(module) is peft_layer.Linear and not module.lora_variant and _plain(module.get_base_layer()):
            module.forward = partial(_adapted, module)


def _plain(base: nn.Module) -> bool:
    """Whether a layer is a linear one of 16-bit weights, not a quantized subclass."""
    return type(base) in (nn.Linear, Conv1D) and base.weight.dtype in SIXTEEN_BITS


def _adapted(module: Any, states: Tensor) -> Tensor:
    """What an adapted layer returns."""
    (name,) = module.active_adapters
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    base, dropped = module.base_layer(states), module.lora_dropout[name](states)
    result: Tensor = _LowRank.apply(base, dropped, down, up, module.scaling[name])
    return result


class _LowRank(torch.autograd.Function):
    """base + scale * (x down^T) up^T in x's type, added to `base` in place; of activations x and x down^T are kept."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        small_down, small_up = down.to(x.dtype), up.to(x.dtype)
        low = linear(x, small_down)
        ctx.save_for_backward(x, low, small_down, small_up)
        ctx.scale = scale
        ctx.mark_dirty(base)
        base.view(-1, base.shape[-1]).addmm_(low.view(-1, low.shape[-1]), small_up.T, alpha=scale)
        return base

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, low, down, up = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        low_grad = (grad @ up) * ctx.scale
        to_x = (low_grad @ down).view(x.shape) if ctx.needs_input_grad[1] else None
        to_down = product(low_grad.T, x.reshape(-1, x.shape[-1]))
        to_up = product(grad.T, low.view(-1, low.shape[-1])) * ctx.scale
        return grads[0], to_x, to_down, to_up, None


def _float32_linear(head: nn.Linear, states: Tensor) -> Tensor:
    found: Tensor = _Float32Product.apply(states, head.weight)
    return found if head.bias is None else found + head.bias.float()


class _Float32Product(torch.autograd.Function):
    """states weight^T in float32 for a frozen weight."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return product(states.reshape(-1, states.shape[-1]), weight.T).view(*states.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return grads[0].to(weight.dtype) @ weight, None


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product of 16-bit matrices in float32: as the device adds it up, or else rounded to 16 bits first."""
    if returns_float32(left.device, left.dtype):
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


@cache
def returns_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies 16-bit matrices into float32 here: on CUDA since 2.8, on no CPU up to 2.14."""
    small = torch.zeros((16, 16), dtype=dtype, device=device)
    try:
        return torch.mm(small, small, out_dtype=torch.float32).dtype == torch.float32
    except (RuntimeError, TypeError):  # NotImplementedError is a RuntimeError
        return False
