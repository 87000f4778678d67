"""Small random vision-language checkpoints: the language part of an architecture, and towers that nobody runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from small_models import _COMMON as COMMON
from small_models import CONFIGS, write_config

TOWER = "patch_embed.proj.weight"
_GEMMA3 = {key: value for key, value in CONFIGS["gemma3"].items() if key != "vocab_size"}
TEXT: Mapping[str, dict[str, Any]] = {
    "qwen3_5": CONFIGS["qwen3_5"],
    "gemma3": {"model_type": "gemma3", "vocab_size": COMMON["vocab_size"], "text_config": _GEMMA3},
    "gemma4": {
        "model_type": "gemma4",
        "vocab_size": COMMON["vocab_size"],
        "text_config": {
            **{key: value for key, value in COMMON.items() if key not in ("vocab_size", "rope_theta")},
            "model_type": "gemma4_text",
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": COMMON["vocab_size"],
            "num_kv_shared_layers": 0,
            "sliding_window": 8,
            "sliding_window_pattern": 3,
        },
    },
    "mistral3": {
        "model_type": "mistral3",
        "text_config": {
            **COMMON,
            "model_type": "ministral3",
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_theta": 10_000.0,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
    },
}
# A tower that transformers can build.
VISION = {
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "image_size": 64,
    "patch_size": 4,
}
# How the name of a tensor of mlx-lm's language part is written in a checkpoint of transformers.
ORIGINAL: Mapping[str, Callable[[str], str]] = {
    "qwen3_5": lambda name: name.replace("language_model.model.", "model.language_model."),
    "gemma3": lambda name: name,
    "gemma4": lambda name: name.replace("language_model.model.", "model.language_model."),
    "mistral3": lambda name: name,
}
TOWERS = {
    "qwen3_5": "model.visual",
    "gemma3": "vision_tower",
    "gemma4": "model.vision_tower",
    "mistral3": "vision_tower",
}


def write_vision_model(
    folder: Path, architecture: str, *, quantize: bool = False, original: bool = True, rows: int = 0
) -> Path:
    """A folder with language and vision weights; `original` as transformers writes them, otherwise as mlx-lm does.

    `rows`: of the embedding, if not those of the other small models.
    """
    import mlx.core as mx

    config = json.loads(json.dumps(TEXT[architecture]))
    text = config["text_config"]
    if rows:
        text["vocab_size"] = rows
        config |= {"vocab_size": rows} if "vocab_size" in config else {}
    if quantize:
        text |= {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    write_config(folder, config, quantize=quantize)
    loaded: Any = mx.load(str(folder / "model.safetensors"))
    arrays = {
        ORIGINAL[architecture](name) if original else name: _stored(architecture, name, array) if original else array
        for name, array in loaded.items()
    }
    rng = np.random.default_rng(1)
    tower = TOWERS[architecture] if original else "vision_tower"
    arrays[f"{tower}.{TOWER}"] = mx.array(rng.standard_normal((4, 6)).astype(np.float32)).astype(mx.bfloat16)
    arrays[f"{tower}.merger.norm.weight"] = mx.array(rng.standard_normal(4).astype(np.float16))
    names, places = sorted(arrays), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = folder / f"model-0000{number}-of-00002.safetensors"
        mx.save_safetensors(str(file), {name: arrays[name] for name in part}, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    content = json.loads((folder / "config.json").read_text())
    content |= {"vision_config": VISION, "image_token_id": 7}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "preprocessor_config.json").write_text('{"size": 4}')
    return folder


def _stored(architecture: str, name: str, array: Any) -> Any:
    """Transformers stores Qwen3.5's convolutions turned, and its norms less one."""
    if architecture != "qwen3_5":
        return array
    if "conv1d" in name:
        return array.moveaxis(2, 1)
    shifted = ("input_layernorm", "post_attention_layernorm", "model.norm", "q_norm", "k_norm")
    return array - 1.0 if name.removesuffix(".weight").endswith(shifted) else array
