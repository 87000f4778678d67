"""The trainable weights: adapter layers of peft on a frozen base, as one flat dict of named tensors.

The names and shapes outside this package are mlx-lm's, so that adapters and checkpoints are the same on every
backend. Student and teacher are two such sets over one model; `active` swaps the teacher's tensors in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sdpo_mlx.backends.learner import adapted_layers, check_arrays
from sdpo_mlx.backends.torch.mixed_precision import fuse_adapter, return_float32_logits
from sdpo_mlx.backends.torch.model import blocks, body_of
from sdpo_mlx.backends.weight_names import mlx_name
from sdpo_mlx.config import AdapterConfig
from sdpo_mlx.core.errors import ConfigError

Weights = dict[str, Tensor]
LINEAR = (nn.Linear, Conv1D)
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
FUSED_OUTPUT = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")  # as peft refuses them
# Ends of parameter names: peft's, and mlx-lm's for the same weights.
_ENDS = {
    ".lora_A.default.weight": ".lora_a",
    ".lora_B.default.weight": ".lora_b",
    ".lora_magnitude_vector.default.weight": ".m",
}


def attach(model: nn.Module, cfg: AdapterConfig, seed: int, config: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """Freeze the base, add the adapter's layers, and return the trained parameters by mlx-lm's names (float32).

    `config` is the content of config.json. Only the language part of a vision-language model is trained. Raise
    ConfigError if `keys` match no layer.
    """
    torch.manual_seed(seed)
    model.requires_grad_(False)
    if cfg.kind == "full":
        model.float()  # small updates vanish in 16 bits
        for part in _language_part(model):
            part.requires_grad_(True)
    else:
        try:
            # Wrapped, so that peft does not see the architecture: it would move targets of dense layers to experts.
            inject_adapter_in_model(_lora(model, cfg, config), nn.ModuleDict({"whole": model}))
        except (ValueError, TypeError, NotImplementedError) as error:
            fix = "use lora, or name other layers in model.adapter.keys"
            raise ConfigError(" ".join(str(error).split())[:200], where="model.adapter", fix=fix) from error
        fuse_adapter(model)
        return_float32_logits(model)
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        end = next((end for end in _ENDS if name.endswith(end)), "")
        parameter.requires_grad_(bool(end) or (cfg.kind == "full" and parameter.requires_grad))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            trained[mlx_name(name.removesuffix(end), config) + _ENDS.get(end, "")] = parameter
    return trained


def _language_part(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that a text runs through: all but the towers of a vision-language model."""
    nested = model.config.get_text_config() is not model.config
    return (body_of(model), model.get_output_embeddings()) if nested else (model,)


@contextmanager
def active(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Run a block with `weights` in the model; the previous tensors are restored whatever happens."""
    resting = {name: parameters[name].data for name in weights}
    try:
        for name, tensor in weights.items():
            parameters[name].data = tensor
        yield
    finally:
        for name, tensor in resting.items():
            parameters[name].data = tensor


def copied(parameters: Mapping[str, Tensor]) -> Weights:
    """Return copies of the tensors."""
    return {name: each.detach().clone() for name, each in parameters.items()}


def to_numpy(weights: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Return numpy copies in mlx-lm's shapes."""
    return {name: _transposed(name, each.detach()).float().cpu().numpy().copy() for name, each in weights.items()}


def from_numpy(arrays: Mapping[str, npt.NDArray[Any]], like: Mapping[str, Tensor], what: str) -> Weights:
    """Return tensors; raise ConfigError unless names and shapes are those of `like`."""
    check_arrays(arrays, {name: _transposed(name, each).shape for name, each in like.items()}, what)

    def tensor(name: str, each: Tensor) -> Tensor:
        found = _transposed(name, torch.from_numpy(np.array(arrays[name], dtype=np.float32)))
        return found.contiguous().to(each.device)

    return {name: tensor(name, each) for name, each in like.items()}


def _transposed(name: str, tensor: Tensor) -> Tensor:
    """mlx-lm stores LoRA's factors transposed."""
    return tensor.T if name.partition("|")[0].endswith((".lora_a", ".lora_b")) else tensor


def _lora(model: nn.Module, cfg: AdapterConfig, config: Mapping[str, Any]) -> LoraConfig:
    found = blocks(model)
    inside = [
        f"{path}.{name}"
        for path, block in found[len(found) - adapted_layers(cfg, len(found)) :]
        for name, module in block.named_modules()
        if (name in cfg.keys if cfg.keys is not None else _adapted(model, name, module)) and isinstance(module, LINEAR)
    ]
    outside = [name for name, _ in model.named_modules() if cfg.keys and {name, mlx_name(name, config)} & {*cfg.keys}]
    if any(not isinstance(model.get_submodule(name), LINEAR) for name in outside):
        raise ConfigError("an embedding is no linear layer", where="model.adapter.keys", fix="name linear layers")
    targets = inside + outside
    if not targets:
        raise ConfigError(
            f"no layer matches {cfg.keys}", where="model.adapter.keys", fix="name linear layers, as self_attn.q_proj"
        )
    return LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.scale * cfg.rank,  # peft divides by the rank
        lora_dropout=cfg.dropout,
        target_modules=[f"whole.{name}" for name in targets],
        use_dora=cfg.kind == "dora",
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
    )


def left_out(model: nn.Module) -> tuple[str, ...]:
    """What to tell about layers that have no adapter: peft adapts linear layers, not experts in one parameter."""
    fused = any(
        p.ndim == 3 and ".experts." in f".{n}" for _, block in blocks(model) for n, p in block.named_parameters()
    )
    return ("the experts have no adapter on torch; attention and dense layers are trained",) if fused else ()


def _adapted(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether a layer of a block is adapted by default: all linear layers but routers and those that peft refuses."""
    last, config = name.rpartition(".")[2], model.config.get_text_config()
    experts = {getattr(config, each, None) for each in EXPERT_COUNTS}
    if last in ("gate", "router", "layer", "classifier") and getattr(module, "out_features", None) in experts - {None}:
        return False
    # A fused kernel of these models may read the weight alone, so peft loads no adapter of this layer.
    return not (last == "out_proj" and config.model_type in FUSED_OUTPUT)
