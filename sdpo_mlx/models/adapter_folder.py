"""Folders of adapters: which library wrote one, and the line for one that is not in mlx-lm's layout."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_mlx.core import git_lfs
from sdpo_mlx.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy.typing as npt

CONFIG = "adapter_config.json"
CHANGES_NOTHING = "this adapter changes nothing: its weights are those before the first step"
MLX_WEIGHTS, PEFT_WEIGHTS, PEFT_PICKLE = "adapters.safetensors", "adapter_model.safetensors", "adapter_model.bin"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter of mlx-lm or PEFT."""
    return any((folder / name).is_file() for name in (CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, PEFT_PICKLE))


def is_peft(folder: Path) -> bool:
    """Return whether a folder holds an adapter of PEFT, and none in mlx-lm's layout."""
    if (folder / MLX_WEIGHTS).is_file():
        return False
    return any((folder / name).is_file() for name in (PEFT_WEIGHTS, PEFT_PICKLE)) or "peft_type" in _config(folder)


def changes_nothing(arrays: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Return whether a low-rank adapter in mlx-lm's layout leaves its base as it is: its second factors are zero."""
    factors = [array for name, array in arrays.items() if name.endswith(".lora_b")]
    return bool(factors) and not any(array.any() for array in factors)


def warnings(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[str, ...]:
    """Return what to print wherever an adapter is used, exported or uploaded."""
    return (CHANGES_NOTHING,) if changes_nothing(arrays) else ()


def check_layout(path: Path, base: str = "") -> None:
    """Raise ConfigError for an adapter that is not in mlx-lm's layout: PEFT's, a GGUF, another file, a git-LFS pointer.

    `base` names the model in the command that converts it; by default what PEFT recorded.
    """
    if path.is_file():
        fix = "name the folder with adapters.safetensors and adapter_config.json"
        what = "an adapter is a folder, this is a file"
        if path.suffix.lower() == ".gguf":
            what = "a LoRA in a GGUF is for llama.cpp and Ollama, and cannot be loaded here"
            fix = "use the adapter that it was made of: its run folder, or mlx-lm's or PEFT's folder"
        raise ConfigError(what, where=str(path), fix=fix)
    check_pointers(path)
    if is_peft(path):
        raise _peft_error(path, base)


def check_pointers(folder: Path) -> None:
    """Raise ConfigError if a file of the folder is a git-LFS pointer."""
    if pointer := git_lfs.pointer_in(folder):
        raise ConfigError(f"{pointer.name} {git_lfs.WHAT}", where=str(folder), fix=git_lfs.FIX)


def _peft_error(folder: Path, base: str) -> ConfigError:
    if not (folder / PEFT_WEIGHTS).is_file():
        held = f"only {PEFT_PICKLE}, which may run code" if (folder / PEFT_PICKLE).is_file() else f"no {PEFT_WEIGHTS}"
        fix = "save it again in PEFT with save_pretrained(folder, safe_serialization=True)"
        return ConfigError(f"this is an adapter of PEFT with {held}", where=str(folder), fix=fix)
    recorded = _config(folder).get("base_model_name_or_path")
    model = base or (recorded if isinstance(recorded, str) and recorded else "NAME")
    new = folder.resolve().with_name(f"{folder.resolve().name}-mlx")
    shown = new if folder.is_absolute() else folder.with_name(new.name) if folder.name not in ("", "..") else new
    command = f"sdpo export {shlex.quote(str(folder))} --to mlx --model {shlex.quote(model)}"
    fix = f"convert it with `{command} --out {shlex.quote(str(shown))}`, and name that folder"
    return ConfigError("this adapter is in PEFT's layout; mlx-lm's is needed here", where=str(folder), fix=fix)


def _config(folder: Path) -> dict[str, Any]:
    """Return `adapter_config.json`, empty if there is none or it is damaged: that it can be read is checked later."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
