"""Small random models in the layout in which their architecture is published, as both backends read it.

The weights are transformers'. Its version 5 saves fewer keys than the published configurations have and mlx-lm 0.32
reads (`rope_theta`, `block_dim`, ...), so those are added; gpt-oss gets its experts in MXFP4, and the language part of
a vision-language model its outer configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch_architectures import write_architecture
from vision_models import VISION

_YARN = {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0}
ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
LATENT = tuple(f"self_attn.{name}" for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"))


@dataclass(frozen=True)
class Published:
    """How an architecture is published: what differs from what transformers saves."""

    keys: tuple[str, ...]  # layers that both backends adapt: experts and fused layers have different names
    options: Mapping[str, Any] = field(default_factory=dict)  # to build it with
    config: Mapping[str, Any] = field(default_factory=dict)  # keys to add to config.json; None removes one
    outer: bool = False  # the language model is a part of a model with an outer configuration


_GEMMA4 = {"global_head_dim": 16, "final_logit_softcapping": 30.0}


def _gpt_oss(*, truncate: bool) -> Published:
    scaling = {**_YARN, "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": truncate}
    config = {"rope_parameters": None, "rope_scaling": scaling, "rope_theta": 150_000.0}
    return Published(ATTENTION, {"intermediate_size": 64}, config)


PUBLISHED: Mapping[str, Published] = {
    "deepseek_v3": Published(LATENT),
    "gemma4": Published(
        ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"),  # layers 2, 3 share keys and values
        # Sizes whose roots, 8 and 4, are exact in bfloat16: see DIFFERENT.
        {**_GEMMA4, "hidden_size": 64, "hidden_size_per_layer_input": 16},
        {"global_head_dim": 16},
        outer=True,
    ),
    "gpt_oss": _gpt_oss(truncate=True),  # as published, false: see DIFFERENT
    "granitemoehybrid": Published(
        (*ATTENTION, "mamba.in_proj", "mamba.out_proj"),
        options={"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
        config={
            "layer_types": ["mamba", "attention", "mamba"],
            "position_embedding_type": "nope",
            "rope_theta": 10_000.0,
            "time_step_limit": None,
        },
    ),
    "lfm2": Published(
        (
            *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
            *("conv.in_proj", "conv.out_proj", "feed_forward.w1", "feed_forward.w2"),
        ),
        config={"block_dim": 32, "block_ff_dim": 48, "rope_theta": 1_000_000.0, "full_attn_idxs": [1]},
    ),
    "ministral3": Published((*ATTENTION, "mlp.up_proj")),
    "olmo3": Published(
        (*ATTENTION, "mlp.up_proj"),
        config={
            "rope_parameters": None,
            "rope_scaling": {**_YARN, "factor": 8.0, "original_max_position_embeddings": 64},
            "rope_theta": 500_000.0,
        },
    ),
    "qwen3_5": Published(
        (*ATTENTION, "linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj", "mlp.up_proj"),
        config={"full_attention_interval": 3},
        outer=True,
    ),
    "qwen3_moe": Published(ATTENTION, config={"num_experts": 4, "rope_theta": 10_000.0}),
}
# Where the backends, with mlx-lm 0.32.2 and transformers 5.24, compute different things: how to see it, and why.
DIFFERENT: Mapping[str, tuple[Published, str]] = {
    "gpt_oss, as published": (
        _gpt_oss(truncate=False),
        "mlx-lm ignores `truncate: false` and rounds the ends of YaRN's range of frequencies to whole numbers",
    ),
    "gemma4, float32": (
        Published(PUBLISHED["gemma4"].keys, _GEMMA4, {"global_head_dim": 16}, outer=True),
        "mlx-lm rounds the embedding's factor only where weights are 16-bit; on torch it is always that of bfloat16",
    ),
}


def write_published(folder: Path, name: str, seed: int = 0) -> Path:
    """A folder with config.json and model.safetensors of a random float32 model that both backends open."""
    how = published(name)
    kind = name.partition(",")[0]
    write_architecture(folder, f"{kind}_text" if how.outer else kind, seed, **how.options)
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **how.config}
    config = {key: value for key, value in config.items() if value is not None}
    if how.outer:
        rows = config["vocab_size"]
        config = {"model_type": kind, "vocab_size": rows, "text_config": config, "vision_config": VISION}
    if kind == "gpt_oss":
        config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    file.write_text(json.dumps(config))
    _rewrite(folder / "model.safetensors", outer=how.outer, mxfp4=kind == "gpt_oss")
    return folder


def published(name: str) -> Published:
    """The entry of either table."""
    return PUBLISHED[name] if name in PUBLISHED else DIFFERENT[name][0]


def _rewrite(file: Path, *, outer: bool, mxfp4: bool) -> None:
    """Rename a language part's tensors, and store experts as blocks of 4 bits."""
    import mlx.core as mx

    loaded: Any = mx.load(str(file))
    arrays: dict[str, Any] = {}
    for name, array in loaded.items():
        if outer:
            arrays[name.replace("model.", "model.language_model.", 1)] = array
        elif mxfp4 and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed, scales = mx.quantize(array.swapaxes(-1, -2), group_size=32, bits=4, mode="mxfp4")
            arrays[f"{name}_blocks"] = packed.view(mx.uint8).reshape(*scales.shape, 16)
            arrays[f"{name}_scales"] = scales
        else:
            arrays[name] = array
    mx.save_safetensors(str(file), {n: mx.array(np.array(a)) for n, a in arrays.items()}, metadata={"format": "pt"})
