"""Convert GGUF metadata to the `config.json` that mlx-lm and transformers read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sdpo_mlx.core.errors import ConfigError

Metadata = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

# Texts of the control tokens that end a turn or a document in the four families.
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>")
_CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
ARCHITECTURES = tuple(_CLASSES)
CONTROL = 3


def model_config(metadata: Metadata, shapes: Shapes, rope_freqs: npt.NDArray[np.float32] | None) -> dict[str, Any]:
    """Return the configuration in a form that both libraries accept (`rope_theta` at the top level).

    `shapes` are the tensors' (rows, columns) by GGUF name; `rope_freqs` is Llama 3's table of divisors.
    Raises ConfigError for an architecture or a variant that is not supported.
    """
    arch = architecture(metadata)
    model_type, class_name = _CLASSES[arch]
    heads = _whole(metadata, f"{arch}.attention.head_count")
    hidden = _whole(metadata, f"{arch}.embedding_length")
    head_dim = metadata.get(f"{arch}.rope.dimension_count", hidden // heads)
    head_dim = int(metadata.get(f"{arch}.attention.key_length", head_dim))
    if int(metadata.get(f"{arch}.attention.value_length", head_dim)) != head_dim:
        raise ConfigError("this GGUF's keys and values differ in width, which is not supported")
    if "token_embd.weight" not in shapes:
        raise ConfigError("the GGUF lacks the tensor 'token_embd.weight'", fix="get the file again")
    config = {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": _whole(metadata, f"{arch}.feed_forward_length"),
        "num_hidden_layers": _whole(metadata, f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(metadata, f"{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _whole(metadata, f"{arch}.context_length"),
        "rms_norm_eps": float(f"{_need(metadata, f'{arch}.attention.layer_norm_rms_epsilon'):.6g}"),
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "hidden_act": "silu",
    }
    config |= _rope(metadata, arch, config, rope_freqs)
    if arch == "gemma3":
        return config | _gemma3(metadata, config)
    if arch in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    more = {"mlp_bias": "blk.0.ffn_up.bias" in shapes} if arch == "llama" else {"use_sliding_window": False}
    return config | more


def architecture(metadata: Metadata) -> str:
    """Return the file's architecture; raises ConfigError if it cannot be imported."""
    if metadata.get("general.type") == "adapter" or any(key.startswith("adapter.") for key in metadata):
        fix = "name its base model; llama.cpp (--lora) and Ollama (ADAPTER) load it beside that model's GGUF"
        raise ConfigError("this GGUF is a LoRA adapter, not a model", fix=fix)
    arch = str(metadata.get("general.architecture", "missing"))
    if arch not in _CLASSES:
        raise ConfigError(f"GGUF architecture {arch!r} is not supported", fix=f"use one of: {', '.join(ARCHITECTURES)}")
    if metadata.get(f"{arch}.expert_count"):
        raise ConfigError("this GGUF holds a mixture of experts, which is not supported", fix="use a dense model")
    return arch


def token_ids(metadata: Metadata) -> dict[str, Any]:
    """Return `bos_token_id`, `eos_token_id` (all of them) and `pad_token_id`, if the file has them."""
    found: dict[str, Any] = {}
    for name, key in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        if f"tokenizer.ggml.{key}" in metadata:
            found[name] = int(metadata[f"tokenizer.ggml.{key}"])
    # The end-of-sequence ids: those that the file names, then control tokens known to end a turn.
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    ends = [int(metadata[key]) for name in names if (key := f"tokenizer.ggml.{name}") in metadata]
    tokens = zip(metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type") or [], strict=False)
    ends += [index for index, (token, kind) in enumerate(tokens) if kind == CONTROL and token in _ENDS]
    return found | ({"eos_token_id": list(dict.fromkeys(ends))} if ends else {})


def _gemma3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    layers, head_dim = config["num_hidden_layers"], config["head_dim"]
    pattern = int(metadata.get("gemma3.attention.sliding_window_pattern", 6))
    # Only the 27B model, recognized by its 62 layers, scales queries by hidden size / heads.
    scalar = config["hidden_size"] // config["num_attention_heads"] if layers == 62 else head_dim
    kinds = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": _whole(metadata, "gemma3.attention.sliding_window"),
        "sliding_window_pattern": pattern,
        "layer_types": kinds,
        "rope_local_base_freq": float(metadata.get("gemma3.rope.freq_base_swa", 10_000.0)),
        "attention_bias": False,
    }


def _rope(
    metadata: Metadata, arch: str, config: Mapping[str, Any], rope_freqs: npt.NDArray[np.float32] | None
) -> dict[str, Any]:
    theta = float(metadata.get(f"{arch}.rope.freq_base", 1e6 if arch == "gemma3" else 1e4))
    rotated = int(metadata.get(f"{arch}.rope.dimension_count", config["head_dim"]))
    if rotated != config["head_dim"]:
        raise ConfigError("this GGUF applies RoPE to a part of each head, which is not supported")
    if rope_freqs is not None:
        return {"rope_theta": theta, "rope_scaling": _llama3_scaling(rope_freqs, theta, config["head_dim"])}
    kind = str(metadata.get(f"{arch}.rope.scaling.type", "none"))
    factor = float(metadata.get(f"{arch}.rope.scaling.factor", metadata.get(f"{arch}.rope.scale_linear", 1.0)))
    if kind == "linear" and factor != 1.0:
        return {"rope_theta": theta, "rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind not in ("none", "linear"):
        raise ConfigError(f"GGUF rope scaling {kind!r} is not supported", fix="use a file without long-context scaling")
    return {"rope_theta": theta}


def _llama3_scaling(divisors: npt.NDArray[np.float32], theta: float, dims: int) -> dict[str, Any]:
    """Return Llama 3's scaling parameters for a table of divisors; raises ConfigError if they do not reproduce it."""
    scaling = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if divisors.size != dims // 2 or not np.allclose(divisors, llama3_divisors(scaling, theta, dims), rtol=1e-3):
        fix = "use a file without long-context scaling"
        raise ConfigError("this GGUF's rope_freqs table is not Llama 3's", fix=fix)
    return scaling


def llama3_divisors(scaling: Mapping[str, Any], theta: float, dims: int) -> npt.NDArray[np.float64]:
    """Return the divisor of each of the `dims // 2` RoPE frequencies (rule of Llama 3.1)."""
    waves = 2 * np.pi * theta ** (np.arange(0, dims, 2) / dims)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    share = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - share) / factor + share))


def _need(metadata: Metadata, key: str) -> Any:
    if key not in metadata:
        raise ConfigError(f"the GGUF lacks {key!r}", fix="get the file again, or another conversion of the model")
    return metadata[key]


def _whole(metadata: Metadata, key: str, default: int | None = None) -> int:
    value = metadata.get(key, default) if default is not None else _need(metadata, key)
    if isinstance(value, list):
        raise ConfigError(f"{key!r} differs between layers in this GGUF, which is not supported")
    if int(value) <= 0:
        raise ConfigError(f"{key!r} is {value} in the GGUF", fix="get the file again")
    return int(value)
