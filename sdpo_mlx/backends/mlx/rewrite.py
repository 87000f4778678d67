"""Writes a checkpoint again in its own layout, with the changed tensors in the place of the old ones.

mlx-lm saves a model in its own names, with stacked experts, which transformers and vllm do not read, and without the
vision weights and the `vision_config` of a vision-language model. Here everything that was not changed keeps its bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from sdpo_mlx.backends.mlx.mlx_lm_api import save_config, save_model

_PARTS = ("vision_config", "audio_config")
_NOT_LANGUAGE = re.compile(r"vision|visual|audio|multi_modal|mm_projector")
_STACKED = re.compile(r"(.+)\.switch_mlp\.(\w+)\.weight")
_INDEX = "model.safetensors.index.json"
_TOWERS = "model-towers.safetensors"  # mlx-lm and mlx-vlm load every model*.safetensors
_QUANTIZED = ("scales", "biases", "global_scale")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a folder by file, with their metadata, read when they are used; and where mlx-lm puts each.

    `names` are the stored names by name in the model, of the tensors that mlx-lm takes as they are: `sanitize` renames
    them, and one that it computes anew is another object.
    """

    files: Mapping[str, tuple[dict[str, mx.array], dict[str, str]]]
    names: Mapping[str, str]

    @classmethod
    def of(cls, base: Path, model: nn.Module) -> Checkpoint:
        """Read the headers of `base`, from which mlx-lm loaded `model`."""
        paths = sorted(base.glob("model*.safetensors"))
        files: dict[str, Any] = {path.name: mx.load(str(path), return_metadata=True) for path in paths}
        stored = {name: array for arrays, _ in files.values() for name, array in arrays.items()}
        known = {id(array): name for name, array in stored.items()}
        try:
            fresh = type(model)(model.args)  # `sanitize` changes some models, and works once; nothing is computed
            taken = getattr(fresh, "sanitize", dict)(dict(stored))
        except Exception:  # an unknown architecture may fail in any way; then it is saved by mlx-lm
            taken = {}
        return cls(files, {name: known[id(array)] for name, array in taken.items() if id(array) in known})

    @property
    def stored(self) -> dict[str, mx.array]:
        """Every tensor by its name in the files."""
        return {name: array for arrays, _ in self.files.values() for name, array in arrays.items()}

    def as_stored(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array] | None:
        """Return arrays of the model by their names in the files; None if one has no place there."""
        found: dict[str, mx.array] = {}
        stored = self.stored
        for name, array in arrays.items():
            experts = _STACKED.fullmatch(name)
            if name in self.names:
                found[self.names[name]] = array
            elif experts and (router := self.names.get(f"{experts[1]}.gate.weight")):
                block = router.removesuffix(".gate.weight")
                found |= {f"{block}.experts.{i}.{experts[2]}.weight": array[i] for i in range(array.shape[0])}
            else:
                return None
        same = all(name in stored and stored[name].shape == array.shape for name, array in found.items())
        return found if same or any(name.endswith(".scales") for name in stored) else None


def write_model(base: Path, out: Path, model: nn.Module, changed: Collection[str], config: dict[str, Any]) -> None:
    """Write `model` to `out`, in the layout of the checkpoint `base` if it has another than mlx-lm's.

    Changed are the arrays of the modules `changed`, by dotted path. `config` is that of the loaded model: without
    `quantization` if the language part was dequantized.
    """
    out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    checkpoint = Checkpoint.of(base, model)
    towers = any(isinstance(config.get(part), Mapping) for part in _PARTS)
    put = checkpoint.as_stored({n: array for n, array in arrays.items() if n.rpartition(".")[0] in changed})
    if put is not None and (towers or not set(checkpoint.stored) <= set(arrays)):
        gone = {f"{path}.{leaf}" for path in changed for leaf in _QUANTIZED}
        _put(out, checkpoint, put, {checkpoint.names[name] for name in gone & set(checkpoint.names)} - set(put))
    else:
        save_model(out, model)
        if not towers:
            save_config(config, out / "config.json")
            return
        _add_towers(out, checkpoint)
    _write_config(base, out, config)


def _put(out: Path, checkpoint: Checkpoint, put: Mapping[str, mx.array], gone: Collection[str]) -> None:
    """Write the files of a checkpoint with these tensors replaced, and without those that are `gone`."""
    places: dict[str, str] = {}
    size = 0
    for file, (held, metadata) in checkpoint.files.items():
        tensors = {name: put.get(name, array) for name, array in held.items() if name not in gone}
        mx.save_safetensors(str(out / file), tensors, metadata=metadata)
        places |= dict.fromkeys(tensors, file)
        size += sum(array.nbytes for array in tensors.values())
    _write_index(out, places, size)


def _add_towers(out: Path, checkpoint: Checkpoint) -> None:
    """Add what is not language to a folder that mlx-lm wrote: it stacks or splits tensors of this architecture."""
    towers = {name: array for name, array in checkpoint.stored.items() if _NOT_LANGUAGE.search(name)}
    mx.save_safetensors(str(out / _TOWERS), towers, metadata={"format": "mlx"})
    index = json.loads((out / _INDEX).read_text(encoding="utf-8"))
    size = index["metadata"]["total_size"] + sum(array.nbytes for array in towers.values())
    _write_index(out, {**index["weight_map"], **dict.fromkeys(towers, _TOWERS)}, size)


def _write_index(out: Path, places: Mapping[str, str], size: int) -> None:
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (out / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_config(base: Path, out: Path, config: Mapping[str, Any]) -> None:
    """Write the base's own config.json, without its quantization if no quantized tensor is left."""
    content = json.loads((base / "config.json").read_text(encoding="utf-8"))
    index = json.loads((out / _INDEX).read_text(encoding="utf-8"))
    if "quantization" not in config and not any(name.endswith(".scales") for name in index["weight_map"]):
        for part in (content, content.get("text_config", {})):
            for key in ("quantization", "quantization_config"):
                part.pop(key, None)
    (out / "config.json").write_text(json.dumps(content, indent=4), encoding="utf-8")
