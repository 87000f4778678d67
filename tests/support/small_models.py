"""Small random models of real architectures, written as safetensors folders: what the backend tests run on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 61
LARGEST_DRAW = 2**16

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "rope_theta": 10_000.0,
}

CONFIGS = {
    "qwen3": {**_COMMON, "model_type": "qwen3", "tie_word_embeddings": True},
    "llama": {**_COMMON, "model_type": "llama", "tie_word_embeddings": False},
    "gemma3": {
        **_COMMON,
        "model_type": "gemma3_text",
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 8,
        "rope_local_base_freq": 10_000.0,
    },
    "qwen3_moe": {
        **_COMMON,
        "model_type": "qwen3_moe",
        "tie_word_embeddings": False,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "qwen3_5": {
        "model_type": "qwen3_5",
        "text_config": {
            **_COMMON,
            "model_type": "qwen3_5_text",
            "tie_word_embeddings": True,
            "num_hidden_layers": 4,
            "full_attention_interval": 3,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_conv_kernel_dim": 4,
        },
    },
    "smollm2": {**_COMMON, "model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 1},
}


def write_model(folder: Path, architecture: str = "qwen3", seed: int = 0, quantize: bool = False) -> Path:
    """A folder with config.json and model.safetensors of random float32 weights."""
    config = dict(CONFIGS[architecture])
    if quantize:
        config |= {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    return write_config(folder, config, seed, quantize)


def write_config(
    folder: Path, config: dict[str, Any], seed: int = 0, quantize: bool | Mapping[str, Any] = False
) -> Path:
    """The same for a configuration of one's own; `quantize` may be options of mlx-lm's `quantize_model`."""
    import sdpo_mlx.backends.mlx.mlx_lm_api  # noqa: F401  loads the BLAS first, and mlx-lm without torch
    import mlx.core as mx  # isort: skip
    import mlx.nn as nn  # isort: skip
    from mlx.utils import tree_flatten, tree_map_with_path  # isort: skip
    from mlx_lm.utils import _get_classes, quantize_model  # isort: skip

    model_class, args_class = _get_classes(config)
    mx.random.seed(seed)
    model = model_class(args_class.from_dict(config))
    if config["model_type"] == "gemma3_text":
        model.sanitize({})
    rng = np.random.default_rng(seed)

    def draw(path: str, array: mx.array) -> mx.array:
        centre = 0.0 if config["model_type"] == "gemma3_text" or "norm" not in path else 1.0
        scale = 0.1 if "norm" in path else 0.25
        values = rng.standard_normal(min(array.size, LARGEST_DRAW))  # a benchmark's large arrays repeat them
        return mx.array(np.resize(centre + scale * values.astype(np.float32), array.shape))

    model.update(tree_map_with_path(draw, model.parameters()))
    if quantize:
        options = quantize if isinstance(quantize, Mapping) else {}
        model, config = quantize_model(model, config, **{"group_size": 32, "bits": 4, **options})
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    assert isinstance(model, nn.Module)
    return folder
