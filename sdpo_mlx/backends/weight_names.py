"""Names of a vision-language model's weights in mlx-lm, which run folders have, and in transformers' classes.

mlx-lm calls the language part `language_model.model`, its output layer `language_model.lm_head`. Transformers' classes
with vision call them `model.language_model` and `lm_head`, those without only `model` and `lm_head`. Other models have
the same names in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from sdpo_mlx.backends.architectures import image_class, model_type, transformers_class
from sdpo_mlx.models.dimensions import TEXT_KEYS

T = TypeVar("T")
_MLX, _VISION, _TEXT = "language_model.model.", "model.language_model.", "model."
_SAME = ("gemma3n", "muse_spark")  # named as in transformers by mlx-lm 0.32.2
_OTHER = "model.text_model."  # of Idefics and SmolVLM, which mlx-lm does not have


def is_vision_language(config: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` describes a language model inside a wrapper that mlx-lm names differently."""
    nested = any(isinstance(config.get(key), Mapping) for key in (*TEXT_KEYS, "vision_config"))
    return nested and model_type(config) not in _SAME


def mlx_name(name: str, config: Mapping[str, Any]) -> str:
    """Return mlx-lm's name of a weight or module from transformers'; mlx-lm's own stay as they are."""
    if not is_vision_language(config) or not name.startswith((_TEXT, "lm_head")) or name.startswith(_OTHER):
        return name
    return "language_model." + name.replace(_VISION, _TEXT, 1)


def by_mlx_names(arrays: Mapping[str, T], config: Mapping[str, Any]) -> dict[str, T]:
    """Return arrays by mlx-lm's names, whichever they have."""
    return {mlx_name(name, config): array for name, array in arrays.items()}


def by_transformers_names(arrays: Mapping[str, T], config: Mapping[str, Any]) -> dict[str, T]:
    """Return arrays by the names in the class that transformers opens this configuration with, which PEFT needs."""
    if not is_vision_language(config):
        return dict(arrays)
    inner = _VISION if transformers_class(config) == image_class(config) else _TEXT
    return {
        name.replace(_MLX, inner, 1).removeprefix("language_model."): array
        for name, array in by_mlx_names(arrays, config).items()
    }
