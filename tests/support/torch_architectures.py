"""Small random models of the decoder architectures that transformers builds, as folders of config and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 61

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
_LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
_MAMBA = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_chunk_size": 8,
}
_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
_SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]

# Options beyond the common sizes; the key is transformers' `model_type`.
OPTIONS: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**_MAMBA, "mamba_n_groups": 1, "attn_layer_indices": [1]},
    "bitnet": {},
    "bloom": {"n_layer": 3, "n_head": 4},
    "codegen": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4, "n_positions": 512},
    "cohere": {},
    "cohere2": {"sliding_window": 8, "layer_types": _SLIDING},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "deepseek_v2": {**_EXPERTS, **_LATENT, "head_dim": 4},
    "deepseek_v3": {**_EXPERTS, **_LATENT, "head_dim": 4},
    "diffllama": {},
    "dots1": {**_EXPERTS, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "ernie4_5": {},
    "ernie4_5_moe": {**_EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    "exaone4": {"sliding_window": 8, "sliding_window_pattern": 3, "layer_types": _SLIDING},
    "falcon": {
        "head_dim": None,
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64, "mamba_n_groups": 1},
    "falcon_mamba": {"state_size": 8},
    "gemma": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8, "layer_types": _SLIDING},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8, "layer_types": _SLIDING},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "intermediate_size": [48] * 4,
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "global_head_dim": 8,
        "intermediate_size": 48,
    },
    "glm": {},
    "glm4": {},
    "glm4_moe": {**_EXPERTS, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "glm4_moe_lite": {**_EXPERTS, **_LATENT, "head_dim": 4},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": 48},
    "gpt_neo": {
        "num_layers": 2,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gpt_neox": {},
    "gpt_oss": {**_EXPERTS, "sliding_window": 8, "layer_types": _SLIDING},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4, "n_positions": 512},
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.7, "embedding_multiplier": 3.0},
    "granitemoe": {**_EXPERTS},
    "granitemoehybrid": {
        **_EXPERTS,
        **_MAMBA,
        "mamba_n_groups": 1,
        "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention", "mamba"],
    },
    "granitemoeshared": {**_EXPERTS, "shared_intermediate_size": 24},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {**_EXPERTS, "moe_topk": [2, 2, 2], "num_experts": 4},
    "jamba": {
        **_EXPERTS,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": 4,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "jetmoe": {**_EXPERTS, "kv_channels": 8, "num_key_value_heads": 2},
    "kimi_linear": {
        **_EXPERTS,
        **_LATENT,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "llama": {},
    "llama4_text": {
        **_EXPERTS,
        "attention_chunk_size": 8,
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 48,
        "moe_layers": [1, 3],
        "no_rope_layers": [1, 1, 1, 0],
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    },
    "longcat_flash": {
        **_LATENT,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "num_layers": 2,
        "num_hidden_layers": 4,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "head_dim": 4,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "minimax": {
        **_EXPERTS,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "block_size": 8,
    },
    "minimax_m2": {**_EXPERTS},
    "ministral": {"sliding_window": 8, "layer_types": _SLIDING},
    "ministral3": {},
    "mistral": {"sliding_window": 8},
    "mixtral": {**_EXPERTS},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 512, "expansion_ratio": 2},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        **_EXPERTS,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "layers_block_type": ["mamba", "attention", "moe"],
        "moe_shared_expert_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
        "chunk_size": 8,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 8, "layer_types": _SLIDING},
    "olmo_hybrid": {**_DELTA},
    "olmoe": {**_EXPERTS},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": 8},
    "phimoe": {**_EXPERTS},
    "qwen2": {},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3": {},
    "qwen3_5_moe_text": {**_EXPERTS, **_DELTA, "shared_expert_intermediate_size": 24},
    "qwen3_5_text": {**_DELTA},
    "qwen3_moe": {**_EXPERTS},
    "qwen3_next": {**_EXPERTS, **_DELTA, "shared_expert_intermediate_size": 24, "mlp_only_layers": []},
    "recurrent_gemma": {
        "lru_width": 32,
        "attention_window_size": 8,
        "block_types": ["recurrent", "recurrent", "attention"],
        "conv1d_width": 4,
    },
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 8},
    "vaultgemma": {"sliding_window": 8, "query_pre_attn_scalar": 8, "layer_types": _SLIDING},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 3, "attention_heads": 4},
    "xlstm": {"num_heads": 4, "num_blocks": 3, "embedding_dim": 32, "chunk_size": 16},
    "youtu": {**_LATENT, "head_dim": 4},
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "n_mamba_heads": 2,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "use_mem_rope": True,
        "adapter_rank": 4,
    },
}
# Vision-language models that keep their towers on torch, by the options of their language part.
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}}
_QWEN3_MROPE = {"rope_parameters": {**_MROPE["rope_parameters"], "mrope_interleaved": True}}
OPTIONS |= {
    name: {"text_config": text}
    for name, text in {
        "aya_vision": {"model_type": "cohere2", **OPTIONS["cohere2"]},
        "gemma3": OPTIONS["gemma3_text"],
        "gemma4": OPTIONS["gemma4_text"],
        "glm4v": _MROPE,
        "idefics3": {"model_type": "llama"},
        "internvl": {"model_type": "qwen2"},
        "lfm2_vl": {"model_type": "lfm2", **OPTIONS["lfm2"]},
        "llava": {"model_type": "llama"},
        "mistral3": {"model_type": "ministral3"},
        "paligemma": {"model_type": "gemma"},
        "qwen2_5_vl": _MROPE,
        "qwen2_vl": _MROPE,
        "qwen3_vl": _QWEN3_MROPE,
        "qwen3_vl_moe": {**_EXPERTS, **_QWEN3_MROPE},
        "smolvlm": {"model_type": "llama"},
    }.items()
}
_TOWER = {
    **dict.fromkeys(("hidden_size", "embed_dim", "intermediate_size", "projection_dim", "hidden_dim"), 8),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 2),
    **dict.fromkeys(("num_hidden_layers", "depth"), 1),
    **dict.fromkeys(("image_size", "num_position_embeddings"), 16),
    "out_hidden_size": 32,
    "head_dim": 4,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}


def _options(name: str) -> dict[str, Any]:
    """The common sizes and the architecture's own options, without those set to None."""
    own = OPTIONS[name]
    if "text_config" in own:
        return {"text_config": {**_SIZES, **own["text_config"]}, "vision_config": dict(_TOWER)}
    return {key: value for key, value in {**_SIZES, **own}.items() if value is not None}


def write_architecture(folder: Path, name: str, seed: int = 0, **options: Any) -> Path:
    """A folder with config.json and model.safetensors of a random float32 model; `options` beyond those above."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.for_model(name, **{**_options(name), **options})
    torch.manual_seed(seed)
    opens = AutoModelForImageTextToText if "text_config" in OPTIONS[name] else AutoModelForCausalLM
    model = opens.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1 and "conv" not in path and "A_log" not in path:
                width = max(parameter.shape[-1], 1)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.4 / width**0.5)
            elif not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    return folder
