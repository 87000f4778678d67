"""Writes a vision-language checkpoint of which the language part was changed; everything else stays byte for byte.

mlx-lm drops the vision weights when it loads such a model, and `vision_config` when it saves one. So the files of the
base are written again under their own names, with the changed tensors in the place of the old ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from sdpo_mlx.backends.mlx.mlx_lm_api import save_model

_PARTS = ("vision_config", "audio_config")
_NOT_LANGUAGE = re.compile(r"vision|visual|audio|multi_modal|mm_projector")
_INDEX = "model.safetensors.index.json"
_TOWERS = "model-towers.safetensors"  # mlx-lm and mlx-vlm load every model*.safetensors
_QUANTIZED = ("scales", "biases", "global_scale")


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration has a part for images or sound beside its language model."""
    return any(isinstance(config.get(part), Mapping) for part in _PARTS)


def write_changed(base: Path, out: Path, model: nn.Module, changed: Collection[str], config: Mapping[str, Any]) -> None:
    """Write the checkpoint `base` to `out` with the arrays of the modules `changed`, by dotted path, from `model`.

    `config` is that of the loaded model: without `quantization` if the language part was dequantized.
    """
    paths = sorted(base.glob("model*.safetensors"))
    files: dict[str, Any] = {file.name: mx.load(str(file), return_metadata=True) for file in paths}
    stored: dict[str, mx.array] = {name: array for arrays, _ in files.values() for name, array in arrays.items()}
    names = _stored_names(model, stored)
    arrays = dict(tree_flatten(model.parameters()))
    new = {name: array for name, array in arrays.items() if name.rpartition(".")[0] in changed}
    out.mkdir(parents=True, exist_ok=True)
    if set(new) <= set(names):
        put = {names[name]: array for name, array in new.items()}
        gone = {names[each] for path in changed for leaf in _QUANTIZED if (each := f"{path}.{leaf}") in names}
        gone -= set(put)
        kept = {name: file for file, (held, _) in files.items() for name in held if name not in gone}
        for file, (held, metadata) in files.items():
            tensors = {name: put.get(name, array) for name, array in held.items() if name not in gone}
            mx.save_safetensors(str(out / file), tensors, metadata=metadata)
        sizes = sum(put.get(name, stored[name]).nbytes for name in kept)
    else:  # mlx-lm stacks or splits tensors of this architecture, so that its language part has mlx-lm's names
        save_model(out, model)
        towers = {name: array for name, array in stored.items() if _NOT_LANGUAGE.search(name)}
        mx.save_safetensors(str(out / _TOWERS), towers, metadata={"format": "mlx"})
        index = json.loads((out / _INDEX).read_text(encoding="utf-8"))
        kept = {**index["weight_map"], **dict.fromkeys(towers, _TOWERS)}
        sizes = index["metadata"]["total_size"] + sum(array.nbytes for array in towers.values())
    index = {"metadata": {"total_size": sizes}, "weight_map": dict(sorted(kept.items()))}
    (out / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    quantized = any(name.endswith(".scales") for name in kept)
    _write_config(base, out, config, quantized=quantized)


def _stored_names(model: nn.Module, stored: Mapping[str, mx.array]) -> dict[str, str]:
    """Names in the files by name in the model, of the tensors that mlx-lm takes as they are.

    `sanitize` renames them; one that it computes anew is another object.
    """
    sanitize = getattr(model, "sanitize", dict)
    known = {id(array): name for name, array in stored.items()}
    return {name: known[id(array)] for name, array in sanitize(dict(stored)).items() if id(array) in known}


def _write_config(base: Path, out: Path, config: Mapping[str, Any], *, quantized: bool) -> None:
    """Write the base's own config.json, without its quantization if no quantized tensor is left."""
    content = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if not quantized and "quantization" not in config:
        for part in (content, content.get("text_config", {})):
            for key in ("quantization", "quantization_config"):
                part.pop(key, None)
    (out / "config.json").write_text(json.dumps(content, indent=4), encoding="utf-8")
