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

from sdpo_mlx.backends.learner import adapted_layers, check_arrays
from sdpo_mlx.config import AdapterConfig
from sdpo_mlx.core.errors import ConfigError

Weights = dict[str, Tensor]
# Ends of parameter names: peft's, and mlx-lm's for the same weights.
_ENDS = {
    ".lora_A.default.weight": ".lora_a",
    ".lora_B.default.weight": ".lora_b",
    ".lora_magnitude_vector.default.weight": ".m",
}


def attach(model: nn.Module, cfg: AdapterConfig, seed: int) -> dict[str, nn.Parameter]:
    """Freeze the base, add the adapter's layers, and return the trained parameters by mlx-lm's names (float32).

    Raise ConfigError if `keys` match no layer.
    """
    torch.manual_seed(seed)
    model.requires_grad_(False)
    if cfg.kind == "full":
        model.float().requires_grad_(True)  # small updates vanish in 16 bits
    else:
        inject_adapter_in_model(_lora(model, cfg), model)
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        end = next((end for end in _ENDS if name.endswith(end)), "")
        parameter.requires_grad_(cfg.kind == "full" or bool(end))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            trained[name.removesuffix(end) + _ENDS.get(end, "")] = parameter
    return trained


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


def _lora(model: nn.Module, cfg: AdapterConfig) -> LoraConfig:
    found = blocks(model)
    first = len(found) - adapted_layers(cfg, len(found))
    targets = [
        f"{path}.{index}.{name}"
        for path, index, block in found
        for name, module in block.named_modules()
        if index >= first and isinstance(module, nn.Linear) and (cfg.keys is None or name in cfg.keys)
    ]
    outside = [name for name, module in model.named_modules() if cfg.keys and name in cfg.keys]
    if any(not isinstance(model.get_submodule(name), nn.Linear) for name in outside):
        raise ConfigError("an embedding is no linear layer", where="model.adapter.keys", fix="name linear layers")
    targets += outside
    if not targets:
        raise ConfigError(
            f"no layer matches {cfg.keys}", where="model.adapter.keys", fix="name linear layers, as self_attn.q_proj"
        )
    return LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.scale * cfg.rank,  # peft divides by the rank
        lora_dropout=cfg.dropout,
        target_modules=targets,
        use_dora=cfg.kind == "dora",
    )


def blocks(model: nn.Module) -> list[tuple[str, int, nn.Module]]:
    """Path, index and module of each transformer block."""
    found = [(path, each) for path, each in model.named_modules() if path.endswith("layers")]
    path, layers = found[0]
    return [(path, index, block) for index, block in enumerate(layers)]
