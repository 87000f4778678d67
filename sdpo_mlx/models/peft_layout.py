"""Convert adapters between mlx-lm's layout, which run folders have, and PEFT's, which most other tools read.

LoRA factors are transposed: mlx-lm's `lora_a` (in, r) and `lora_b` (r, out) are PEFT's `lora_A`
(r, in) and `lora_B` (out, r), and mlx-lm's scale is PEFT's `lora_alpha / r`, or `lora_alpha / sqrt(r)` with
`use_rslora`. DoRA's magnitudes are equal.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.models.adapter_folder import CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, check_layout, check_pointers, is_peft
from sdpo_mlx.models.safetensors_io import read_arrays

Arrays = dict[str, npt.NDArray[Any]]
_PREFIX = "base_model.model."
_TO_PEFT = {".lora_a": ".lora_A.weight", ".lora_b": ".lora_B.weight", ".m": ".lora_magnitude_vector"}
_INSIDE = re.compile(r"^model\.(language_model|text_model)\.")  # the language part of a class with vision
_BLOCK = re.compile(r"\.layers\.(\d+)\.(.+)$")


def to_peft(
    arrays: Mapping[str, npt.NDArray[Any]], config: Mapping[str, Any], base: str
) -> tuple[Arrays, dict[str, Any]]:
    """Return PEFT's tensors and `adapter_config.json` of an adapter in mlx-lm's layout; `base` names the model.

    Raises ConfigError for full weights, and for embeddings and experts, which PEFT stores differently.
    """
    if config.get("fine_tune_type") == "full":
        raise ConfigError("all weights were trained, so there is no adapter", where="--to", fix="use --to fused")
    tensors = {}
    for name, array in arrays.items():
        path, end = _split(name, _TO_PEFT)
        if array.ndim > 2 or ".switch_mlp." in name:
            raise ConfigError(f"PEFT has no form for adapted experts ({path})", where="--to", fix="use --to fused")
        if "embed" in path:
            raise ConfigError(f"{path} is not a linear layer", where="--to", fix="use --to fused")
        oriented = array if end == ".m" else array.T
        tensors[_PREFIX + path + _TO_PEFT[end]] = np.ascontiguousarray(oriented, dtype=np.float32)
    settings, blocks = config["lora_parameters"], [_BLOCK.search(name) for name in arrays]
    adapted = sorted({int(block[1]) for block in blocks if block})
    paths = {_split(name, _TO_PEFT)[0] for name in arrays}
    # The short names of a vision tower's layers are the same: there PEFT needs the whole ones.
    inside = any(_INSIDE.match(name) for name in arrays)
    return tensors, {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings["rank"],
        "lora_alpha": settings["scale"] * settings["rank"],
        "lora_dropout": settings.get("dropout", 0.0),
        "target_modules": sorted(paths if inside else {path.rpartition(".")[2] for path in paths}),
        "use_rslora": False,  # lora_alpha / r is the scale, whatever the adapter began as
        "use_dora": config.get("fine_tune_type") == "dora",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        # Only if all layers are inside blocks.
        **({"layers_to_transform": adapted, "layers_pattern": "layers"} if all(blocks) and not inside else {}),
    }


def from_peft(
    tensors: Mapping[str, npt.NDArray[Any]], config: Mapping[str, Any], depth: int
) -> tuple[Arrays, dict[str, Any]]:
    """Return an adapter in mlx-lm's layout from PEFT's tensors, for a base of `depth` blocks.

    Raises ConfigError for what mlx-lm does not support: other methods than LoRA and DoRA, ranks that differ.
    """
    unsupported = [key for key in ("rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
    if config.get("peft_type") != "LORA" or unsupported:
        what = unsupported[0] if unsupported else f"peft_type {config.get('peft_type')!r}"
        raise ConfigError(f"mlx-lm does not support {what}", where=CONFIG, fix="export a plain LoRA or DoRA")
    if not all(isinstance(config.get(key), int | float) for key in ("r", "lora_alpha")):
        raise StorageError("r or lora_alpha is missing or no number", where=CONFIG, fix="get the adapter again")
    ends, arrays = {theirs: ours for ours, theirs in _TO_PEFT.items()}, Arrays()
    for name, tensor in tensors.items():
        path, end = _split(name.removeprefix(_PREFIX), ends)
        oriented = tensor if ends[end] == ".m" else tensor.T
        arrays[path + ends[end]] = np.ascontiguousarray(oriented, dtype=np.float32)
    blocks = sorted({int(found[1]) for name in arrays if (found := _BLOCK.search(name))})
    if blocks != list(range(depth - len(blocks), depth)):
        raise ConfigError("mlx-lm can only adapt the last blocks of a model", where=CONFIG, fix="retrain with those")
    keys = {found[2] if (found := _BLOCK.search(path)) else path for path in (n.rpartition(".")[0] for n in arrays)}
    rank = int(config["r"])
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    parameters = {"rank": rank, "scale": scale, "dropout": config.get("lora_dropout", 0.0)}
    kind = "dora" if config.get("use_dora") else "lora"
    parameters["keys"] = sorted(keys)
    return arrays, {"fine_tune_type": kind, "num_layers": len(blocks), "lora_parameters": parameters}


def read_peft(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """Return tensors and configuration of a PEFT folder; raises StorageError if they cannot be read (no pickles)."""
    check_pointers(folder)
    try:
        tensors, config = read_arrays((folder / PEFT_WEIGHTS).read_bytes()), json.loads((folder / CONFIG).read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} is not a JSON object")
        return tensors, config
    except FileNotFoundError as error:
        if is_peft(folder):  # with pickled weights alone
            check_layout(folder)
        if (folder / MLX_WEIGHTS).is_file():
            fix = f"use it directly: --adapter {folder}"
            raise ConfigError("this adapter is in mlx-lm's layout already", where=str(folder), fix=fix) from error
        fix = f"name a folder with {PEFT_WEIGHTS} and {CONFIG}"
        raise StorageError("no PEFT adapter here", where=str(folder), fix=fix) from error
    except (OSError, ValueError) as error:
        raise StorageError(f"the adapter cannot be read: {error}", where=str(folder)) from error


def _split(name: str, ends: Mapping[str, str]) -> tuple[str, str]:
    for end in ends:
        if name.endswith(end):
            return name.removesuffix(end), end
    raise ConfigError(f"{name} is not a LoRA tensor", where="--to", fix="export a plain LoRA or DoRA")
