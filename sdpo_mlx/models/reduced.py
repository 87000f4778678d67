"""A configuration of the same architecture with a few narrow layers, to test its kinds of layers in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdpo_mlx.models.dimensions import TEXT_KEYS, ModelDims, Quantization

VOCABULARY = 512
WIDTH = 256
INNER = 256  # width of feed-forward layers
WINDOW = 8  # tokens: texts of 40 tokens go beyond it
EXPERTS = 4
MOST_LAYERS = 8

# Values by the names that mlx-lm's architectures give them; what is not named keeps its value, so do all head widths.
_SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("vocab_size", "num_vocab", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("intermediate_size", "ff_intermediate_size", "ffn_hidden_size", "intermediate_size_mlp"), INNER),
    **dict.fromkeys(("n_inner", "block_ff_dim", "shared_intermediate_size", "share_expert_dim"), INNER),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), INNER),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "dense_intermediate_size", "moe_hidden_size"), INNER),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), WINDOW),
    **dict.fromkeys(("attention_chunk_size",), WINDOW),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    # Every token goes to all experts: which ones it goes to would hang on rounding.
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"), EXPERTS),
    **dict.fromkeys(("top_k_experts", "experts_per_token"), EXPERTS),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_transformer_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "hidden_dim", "model_dim")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_global_key_value_heads")

_HEAD_WIDTHS = ("head_dim", "v_head_dim", "kv_channels", "hidden_size_per_head")


def reduced(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with one layer of each kind, its head widths, head ratios and quantization kept.

    Raises ConfigError if it lacks a decoder's dimensions. Whether the architecture can be built so is not known here.
    """
    quantization = Quantization.of(config)
    given = {name: value for name, value in config.items() if name != "quantization_config"}
    if quantization.bits and "quantization" not in given:
        settings = {"group_size": quantization.group, "bits": quantization.bits, "mode": quantization.mode}
        given["quantization"] = settings
    key = next((each for each in TEXT_KEYS if config.get(each) is not None), None)
    if key is None:
        return _reduced(given, ModelDims.of(config, "config.json"))
    # mlx-lm's Gemma 3 takes the vocabulary from here, with a default.
    return {**given, "vocab_size": VOCABULARY, key: _reduced(config[key], ModelDims.of(config, "config.json"))}


def _reduced(text: Mapping[str, Any], dims: ModelDims) -> dict[str, Any]:
    layers = min(_enough(text, dims), MOST_LAYERS)
    each = max(dims.heads // max(dims.kv_heads, 1), 1)  # query heads of one key head
    sizes = {
        **_SIZES,
        **dict.fromkeys(_LAYERS, layers),
        **dict.fromkeys(_HEADS, each),
        **dict.fromkeys(_KEY_HEADS, 1),
        **dict.fromkeys(_WIDTHS, WIDTH if any(name in text for name in _HEAD_WIDTHS) else each * dims.head_width),
    }
    if "linear_num_key_heads" in text:
        ratio = text["linear_num_value_heads"] // text["linear_num_key_heads"]
        sizes |= {"linear_num_key_heads": 1, "linear_num_value_heads": ratio}

    def value(name: str, old: Any) -> Any:
        if isinstance(old, list) and len(old) == dims.layers:
            return old[:layers]
        return sizes[name] if name in sizes and old not in (None, 0, False) else old

    return {name: value(name, old) for name, old in text.items()}


def _enough(text: Mapping[str, Any], dims: ModelDims) -> int:
    """Return how many of the first layers have one of each kind, at least two."""
    lists = [value for value in text.values() if isinstance(value, list) and len(value) == dims.layers]
    return max(2, *(1 + max(map(each.index, each)) for each in (list(dims.layer), *lists) if each))
