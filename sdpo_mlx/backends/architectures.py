"""Which architectures a backend's library knows, from the names in its files: importing them takes seconds."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LIBRARIES: Mapping[str, str] = {"mlx": "mlx-lm", "torch": "transformers"}
_MODEL_CLASS = re.compile(r"^class Model\(", re.MULTILINE)
_CAUSAL, _IMAGE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"
_TABLE = r"(?:OrderedDict\()?(.*?^[})])"
# mlx-lm reads these besides its own quantization (load_model in mlx_lm/utils.py, 0.32.2).
MLX_READS = ("bitnet", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt", "awq", "gptq")
# What the torch backend trains an adapter on: bitsandbytes' layers, and methods that are undone while loading.
TORCH_TRAINS = ("bitsandbytes", "fp8", "mxfp8", "mxfp4")


def is_known(config: Mapping[str, Any], backend: str) -> bool | None:
    """Return whether the backend's library has this architecture; None if the library is not installed."""
    kind = model_type(config)
    if backend == "torch":
        return bool(transformers_class(config)) if _classes(_CAUSAL) else None
    models = _folder("mlx_lm", "models")
    if models is None:
        return None
    return _is_model(models / f"{kind}.py") or any(_is_model(models / f"{each}.py") for each in _remapped(config))


def model_type(config: Mapping[str, Any]) -> str:
    """Return `model_type` of a configuration, blank if it has none that could be a module's name."""
    found = str(config.get("model_type") or "")
    return found if re.fullmatch(r"[\w-]+", found) else ""


def causal_class(config: Mapping[str, Any]) -> str:
    """Return the class that transformers' AutoModelForCausalLM opens this configuration with; blank if none."""
    return _classes(_CAUSAL).get(model_type(config), "")


def image_class(config: Mapping[str, Any]) -> str:
    """Return the class that transformers' AutoModelForImageTextToText opens this configuration with; blank if none."""
    return _classes(_IMAGE).get(model_type(config), "")


def transformers_class(config: Mapping[str, Any]) -> str:
    """Return the class that the torch backend opens this configuration with; blank if none."""
    return causal_class(config) or image_class(config)


def has_other_classes(config: Mapping[str, Any]) -> bool:
    """Return whether transformers has classes for this architecture, though none that generates text."""
    kind = model_type(config)
    return bool(kind) and not transformers_class(config) and _folder("transformers", f"models/{kind}") is not None


def mlx_lm_module(config: Mapping[str, Any]) -> str:
    """Return the name of the module of `mlx_lm.models` that loads this configuration."""
    return (*_remapped(config), model_type(config))[0]


def _remapped(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Modules that mlx-lm uses for this configuration instead of the one of its own name."""
    kind, given = model_type(config), config.get("architectures") or ()
    names, classes = _remappings()
    pairs = [(kind, each) for each in ([given] if isinstance(given, str) else given)]
    return (*(classes[pair] for pair in pairs if pair in classes), *([names[kind]] if kind in names else []))


@cache
def _remappings() -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    folder = _folder("mlx_lm")
    text = (folder / "utils.py").read_text(encoding="utf-8") if folder else ""
    found = [_table(text, name) for name in ("MODEL_REMAPPING", "MODEL_ARCHITECTURE_REMAPPING")]
    names, classes = (ast.literal_eval(each) if each else {} for each in found)
    return names, classes


@cache
def _classes(table: str) -> dict[str, str]:
    """Classes by `model_type` in a table of transformers' auto classes; empty without transformers."""
    folder = _folder("transformers", "models/auto")
    text = (folder / "modeling_auto.py").read_text(encoding="utf-8") if folder else ""
    return dict(re.findall(r'\(\s*"([\w.-]+)",\s*"(\w+)"', _table(text, table)))


def _table(text: str, name: str) -> str:
    found = re.search(f"^{name} = " + _TABLE, text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


@cache
def _is_model(path: Path) -> bool:
    return path.is_file() and bool(_MODEL_CLASS.search(path.read_text(encoding="utf-8")))


def _folder(package: str, inside: str = "") -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = find_spec(package)
    places = [Path(each) / inside for each in (spec.submodule_search_locations or ())] if spec else []
    return next((place for place in places if place.is_dir()), None)
