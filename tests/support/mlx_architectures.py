"""A small random configuration for every architecture of the installed mlx-lm, made from its `ModelArgs` alone.

`SIZES` gives each common field a small value by its name; `SPECIAL` holds what an architecture needs beyond that. An
architecture that is new in mlx-lm is built from `SIZES`; if that fails, `small_config` cannot make it and its test says
so.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 61
LAYERS = 4
IDS = ("vocab_size", "num_vocab", "vocab_size_per_layer_input")

# By field name; fields that are not listed keep their default, and required ones get 1.
SIZES: dict[str, Any] = {
    **dict.fromkeys(IDS, VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "hidden_dim", "model_dim", "block_dim"), 32),
    **dict.fromkeys(("index_head_dim", "global_head_dim", "swa_head_dim", "swa_v_head_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_transformer_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ff_intermediate_size", "ffn_hidden_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("n_inner", "block_ff_dim", "shared_intermediate_size", "share_expert_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size",), 24),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "moe_layer_freq", "decoder_sparse_step"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "model_max_length", "block_size"), 512),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "rotary_emb_base", "swa_rope_theta"), 10_000.0),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps", "layernorm_epsilon"), 1e-6),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), 8),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "hidden_size_per_head", "kv_channels"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "mamba_head_dim", "mamba_d_head", "linear_key_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "state_size", "ssm_state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim", "decay_low_rank_dim"), 8),
    **dict.fromkeys(("linear_num_value_heads", "mamba_n_heads", "mamba_num_heads", "index_n_heads"), 4),
    **dict.fromkeys(("linear_num_key_heads", "full_attention_interval", "layer_group_size", "group_norm_size"), 2),
    **dict.fromkeys(("conv_kernel", "linear_conv_kernel_dim", "conv1d_width", "mamba_d_conv"), 4),
    **dict.fromkeys(("conv_L_cache", "conv_window"), 3),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "n_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("routed_scaling_factor", "partial_rotary_factor", "rotary_pct", "norm_topk_prob"), 1.0),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "use_cla", "router_bias", "conv_bias"), False),
    **dict.fromkeys(("use_conv_bias", "use_qk_norm", "qk_norm", "mamba_conv_bias"), True),
    **dict.fromkeys(("tie_word_embeddings", "mla_scale_q_lora", "mla_scale_kv_lora", "linear_allow_neg_eigval"), False),
    **dict.fromkeys(("mlp_only_layers", "no_rope_layers", "sliding_window_layers"), ()),
    **dict.fromkeys(("embedding_multiplier", "logits_scaling", "scale_emb", "scale_depth", "embedding_scale"), 1.5),
    **dict.fromkeys(("attention_multiplier", "residual_multiplier", "logit_scale", "output_multiplier"), 0.5),
    **dict.fromkeys(("final_logit_softcapping", "logits_soft_cap", "attn_logit_softcapping"), 30.0),
    "dim_model_base": 16,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "index_topk": 4,
    "time_step_limit": (0.001, 100.0),
    "rope_scaling": None,
    "quantization": None,
}

SLIDING = ["sliding_attention", "full_attention"] * 2
YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256, "mscale": 1.0, "mscale_all_dim": 1.0}
LLAMA4_ROPE = {"rope_theta": 1e4, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16}
ROPE_BY_TYPE = {"sliding_attention": {"rope_theta": 1e4}, "full_attention": {"rope_theta": 1e5}}
MAMBA = {"mamba_num_heads": 4, "mamba_head_dim": 8}
KIMI_DELTA = {
    "linear_attn_config": {"kda_layers": [1, 2, 3], "num_heads": 2, "head_dim": 32, "short_conv_kernel_size": 4}
}

# What an architecture needs beyond SIZES: lists with an entry for each layer, nested configurations, ratios.
SPECIAL: dict[str, dict[str, Any]] = {
    "afmoe": {"layer_types": SLIDING},
    "baichuan_m1": {"conv_window": 2, "sliding_window_layers": [0, 2]},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
    },
    "deepseek_v2": {"rope_scaling": {**YARN, "beta_fast": 32, "beta_slow": 1}, "topk_method": "gready"},
    "exaone4": {"sliding_window_pattern": "LG", "sliding_window": 8},
    "exaone_moe": {"layer_types": SLIDING, "is_moe_layer": [False, True, True, True]},
    "falcon_h1": {"mamba_d_ssm": 32},
    "gear": {"layer_types": SLIDING},
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n": {
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "layer_types": SLIDING,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 2,
        "altup_active_idx": 0,
        "laurel_rank": 4,
        "final_logit_softcapping": 30.0,
    },
    "gemma4_text": {"layer_types": SLIDING, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8},
    "glm_moe_dsa": {"rope_parameters": {"rope_theta": 1e4}},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"] * 2, "mamba_expand": 1},
    "hunyuan": {
        "rope_scaling": {"type": "dynamic", "alpha": 2.0, "factor": 1.0},
        "use_cla": True,
        "cla_share_factor": 2,
    },
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2},
    "kimi_k3": KIMI_DELTA,
    "kimi_linear": KIMI_DELTA,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8, "full_attn_idxs": [1, 3]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "full_attn_idxs": [1, 3]},
    "lille-130m": {"n_embd": 256},
    "llama4": {"num_experts_per_tok": 1, "attention_chunk_size": 8, "interleave_moe_layer_step": 2},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0]},
    "longcat_flash": {"mla_scale_q_lora": True, "mla_scale_kv_lora": True, "zero_expert_num": 2},
    "longcat_flash_ngram": {"mla_scale_q_lora": True, "mla_scale_kv_lora": True, "zero_expert_num": 2},
    "mellum": {"layer_types": SLIDING, "rope_parameters": ROPE_BY_TYPE},
    "mimo_v2_flash": {"moe_layer_freq": [0, 1, 1, 1], "hybrid_layer_pattern": [0, 1, 1, 0]},
    "minicpm3": {"rope_scaling": {"original_max_position_embeddings": 256, "type": "longrope"}},
    "minimax_m3_vl": {"moe_layer_freq": [0, 1, 1, 1], "dense_intermediate_size": 48},
    "ministral3": {"rope_parameters": LLAMA4_ROPE, "layer_types": SLIDING},
    "mistral4": {"rope_parameters": {**LLAMA4_ROPE, "type": "default"}},
    "muse_spark": {
        "rope_parameters": {"rope_theta": 1e4},
        "layer_rope_theta": [1e4, 1e4, 1e4, 0],
        "layer_types": SLIDING,
        "num_shared_experts": 0,
        "moe_hidden_size": 24,
    },
    "nemotron-nas": {
        "block_configs": [{"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}}] * LAYERS,
    },
    "nemotron_h": {**MAMBA, "hybrid_override_pattern": list("M*E-")},
    "openelm": {
        "num_query_heads": [4] * 4,
        "num_kv_heads": [2] * 4,
        "ffn_multipliers": [1.0] * 4,
        "ffn_dim_divisor": 8,
    },
    "phi3small": {"vocab_size": 100_352},  # it masks ids of its own vocabulary
    "phi3": {"partial_rotary_factor": 1.0},
    "plamo": {"n_shared_head": 2},
    "qwen3_5_moe": {"architecture": "qwen3_5"},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "_block_types": ["recurrent", "attention"]},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "spark2_5": {"rope_parameters": ROPE_BY_TYPE, "layer_types": SLIDING},
}
# Language models inside wrappers that do not define one.
TEXT = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "kimi_k25": "deepseek_v3",
    "lfm2-vl": "lfm2",
    "mistral3": "ministral3",
    "pixtral": "llama",
    "qwen2_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}

# What mlx-lm itself cannot run or differentiate here, and why.
NOT_HERE = {
    "bitnet": "its linear layer is a Metal kernel",
    "muse_spark": "its attention is a Metal kernel",
    "olmo": "needs the package ai2-olmo",
    "prism_hadamard_qwen35": "its weights are packed by another program",
}
REFUSED = {
    "deepseek_v41": "its gradient fails",  # through the indices of its token selection
    "phi3small": "differ from the whole",  # its block mask depends on how much is run at once
}


def architectures() -> list[str]:
    """Return the modules of `mlx_lm.models` that define a model."""
    import mlx_lm.models as package

    found = []
    for name in sorted(each.name for each in pkgutil.iter_modules(package.__path__)):
        spec = importlib.util.find_spec(f"{package.__name__}.{name}")
        if "class ModelArgs" in (spec.loader.get_data(spec.origin)).decode():
            found.append(name)
    return found


def small_config(name: str, rows: int = VOCABULARY) -> dict[str, Any]:
    """Return a `config.json` of that architecture with about 100,000 parameters, and so many rows of embeddings."""
    found = _small_config(name)
    for config in (found, found.get("text_config", {})):
        config.update({key: rows for key in IDS if config.get(key) == VOCABULARY})
    return found


def _small_config(name: str) -> dict[str, Any]:
    module = importlib.import_module(f"mlx_lm.models.{name}")
    special = SPECIAL.get(name, {})
    if "text_config" not in {field.name for field in dataclasses.fields(module.ModelArgs)}:
        return {**_sized(module.ModelArgs), **special, "model_type": name}
    if name in TEXT:
        text = _small_config(TEXT[name])
    else:
        source = importlib.import_module("mlx_lm.models.qwen3_5") if name == "qwen3_5_moe" else module
        found = next(
            (getattr(source, n) for n in ("TextArgs", "TextModelArgs", "TextConfig") if hasattr(source, n)), None
        )
        if found is None:
            raise LookupError("its language model is described elsewhere")
        text = {**_sized(found), **special, "model_type": f"{name}_text"}
    return {**_sized(module.ModelArgs), "model_type": name, "text_config": text}


def _sized(args: type) -> dict[str, Any]:
    """Return the fields that SIZES knows, and 1 for other required ones."""
    fields = dataclasses.fields(args)
    required = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    config = {f.name: SIZES.get(f.name, 1) for f in fields if f.name in SIZES or f.name in required}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def small_model(name: str, rows: int = VOCABULARY) -> Any:
    """Return a random model of an architecture, norms near their identity."""
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(small_config(name, rows)))
    rng = np.random.default_rng(0)

    def draw(path: str, array: mx.array) -> mx.array:
        if not mx.issubdtype(array.dtype, mx.floating):
            return array
        centre = 1.0 if "norm" in path and "gemma" not in name else 0.0
        scale = 0.1 if "norm" in path or array.ndim < 2 else 0.25
        return mx.array((centre + scale * rng.standard_normal(array.shape)).astype(np.float32))

    model.update(tree_map_with_path(draw, model.parameters()))
    return model


def write_architecture(folder: Path, name: str, rows: int = VOCABULARY) -> Path:
    """Write a random model of an architecture as a folder of config.json and safetensors."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(small_model(name, rows).parameters())))
    (folder / "config.json").write_text(json.dumps(small_config(name, rows)), encoding="utf-8")
    return folder
