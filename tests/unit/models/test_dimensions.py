"""Dimensions from a configuration alone: those of the model that mlx-lm builds from it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.dimensions import COUNTED, ModelDims, language_part

# Architectures of mlx-lm that are estimated as if they had the most common layout, and why.
ESTIMATED = {
    "afm7": "layers without keys and values, quantized embedding",
    "bailing_hybrid": "linear attention by groups of layers",
    "bailing_moe_linear": "linear attention by groups of layers",
    "bailing_moe_v3": "linear attention by groups of layers",
    "bitnet": "packed weights",
    "deepseek_v41": "low-rank outputs, compressed attention",
    "laguna": "heads by layer",
    "lille-130m": "feed-forward width computed from the width",
    "longcat_flash": "two attentions and two dense parts in a layer",
    "longcat_flash_ngram": "two attentions in a layer, tables of n-grams",
    "mimo_v2_flash": "other head widths in layers with a window",
    "muse_spark": "experts of another width",
    "nemotron-nas": "a layout for each layer",
    "openelm": "a layout for each layer",
    "phi3small": "block-sparse attention",
    "plamo": "shared heads",
    "plamo2": "its own Mamba layers",
    "recurrent_gemma": "its own recurrence",
    "rwkv7": "its own recurrence",
    "step3p5": "other head counts in layers with a window",
}
UNBUILT = {"olmo": "needs another package", "prism_hadamard_qwen35": "wraps another architecture"}
WIDTHS = (  # keys of `small_config` that are widths: norms and biases count for less when these are larger
    "_size", "_dim", "_rank", "n_embd", "d_model", "n_inner", "mamba_d_head", "mamba_d_state", "mamba_d_ssm",
    "kv_channels", "hidden_size_per_head",
)  # fmt: skip
NO_WIDTHS = ("group_norm_size", "sliding_window_size", "window_size", "chunk_size", "block_size", "kernel_dim")


def larger(config: Any) -> Any:
    """The same configuration with widths times 16."""
    if not isinstance(config, dict):
        return config
    return {
        key: value * 16
        if type(value) is int and (key.endswith(WIDTHS) or "hidden_size" in key) and not key.endswith(NO_WIDTHS)
        else larger(value)
        for key, value in config.items()
    }


def test_parameters_of_every_architecture_are_those_of_the_model() -> None:
    pytest.importorskip("mlx.core")
    mlx_architectures = pytest.importorskip("mlx_architectures")
    import sdpo_mlx.backends.mlx.mlx_lm_api  # noqa: F401  mlx-lm without torch
    from mlx.utils import tree_flatten  # isort: skip

    different, unbuilt = {}, set()
    for name in mlx_architectures.architectures():
        config = larger(mlx_architectures.small_config(name)) if name not in UNBUILT else {}
        try:
            module = importlib.import_module(f"mlx_lm.models.{name}")
            leaves = tree_flatten(module.Model(module.ModelArgs.from_dict(config)).parameters())
        except (Exception, SystemExit):
            unbuilt.add(name)
            continue
        # Gemma's files hold no head; mlx-lm ties it when it reads them.
        total = sum(array.size for path, array in leaves if not (name.startswith("gemma") and "lm_head" in path))
        try:
            counted = ModelDims.of(config, name).parameters
        except ConfigError:
            counted = 0
        if str(language_part(config)["model_type"]).removesuffix("_text") not in COUNTED:
            assert name in ESTIMATED, f"{name}: count its layers, or say why not"
        elif abs(counted / total - 1) > 0.01:
            different[name] = round(counted / total, 3)
    assert different == {}
    assert unbuilt == set(UNBUILT)
    assert not COUNTED & ESTIMATED.keys()


LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1_024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1_000,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("quantization", "bytes_"),
    [
        ({"bits": 4, "group_size": 64}, 4 / 8 + 4 / 64),
        ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, 4 / 8 + 1 / 32),
        ({"bits": 4, "group_size": 16, "mode": "nvfp4"}, 4 / 8 + 1 / 16),
        ({"bits": 8, "group_size": 32, "mode": "mxfp8"}, 1 + 1 / 32),
    ],
)
def test_weights_of_each_quantization_are_counted(quantization: dict[str, Any], bytes_: float) -> None:
    dims = ModelDims.of({**LLAMA, "quantization": quantization}, "llama")
    assert dims.weight_bytes(2) == pytest.approx(dims.parameters * bytes_)


def test_bits_of_single_layers_are_counted() -> None:
    usual = {"bits": 4, "group_size": 64}
    own = {
        "model.layers.1.mlp.down_proj": {"bits": 8, "group_size": 64},
        "model.layers.2.self_attn.v_proj": False,
        "model.embed_tokens": {"bits": 6, "group_size": 64},
        "vision_tower.encoder.layers.99.mlp.fc1": False,
    }
    plain, mixed = (ModelDims.of({**LLAMA, "quantization": {**usual, **more}}, "llama") for more in ({}, own))
    more = 1_024 * 512 * 4 / 8 + 512 * 128 * (2 - 4 / 8 - 4 / 64) + 1_000 * 512 * 2 / 8
    assert mixed.weight_bytes(2) - plain.weight_bytes(2) == pytest.approx(more)


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config"])
def test_language_part_of_a_wrapper_is_read(key: str) -> None:
    wrapped = ModelDims.of({"model_type": "wrapper", key: LLAMA, "vision_config": {"hidden_size": 9}}, "wrapper")
    assert wrapped == ModelDims.of(LLAMA, "llama")


def test_windows_make_caches_smaller() -> None:
    types = ["sliding_attention", "full_attention"] * 2
    gpt_oss = {**LLAMA, "model_type": "gpt_oss", "layer_types": types, "sliding_window": 128}
    windows, whole = ModelDims.of(gpt_oss, "gpt_oss"), ModelDims.of(LLAMA, "llama")
    assert windows.cached(100) == whole.cached(100)
    assert windows.cached(1_000) == whole.cached(1_000) / 2 + whole.cached(128) / 2


def test_latent_attention_caches_the_latent_state() -> None:
    latent = {"kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32}
    dims = ModelDims.of({**LLAMA, **latent, "model_type": "deepseek_v3"}, "deepseek_v3")
    assert dims.cached(10) == 10 * 4 * (64 + 16)


def test_unknown_architecture_is_marked_as_an_estimate() -> None:
    assert ModelDims.of(LLAMA, "llama").note == ""
    note = ModelDims.of({**LLAMA, "model_type": "brand_new"}, "x").note
    assert "brand_new" in note
    assert "\n" not in note


@pytest.mark.parametrize(
    "damage",
    [
        {"num_hidden_layers": "many"},
        {"num_attention_heads": 0},
        {"layer_types": 3, "linear_num_value_heads": None},
        {"kv_lora_rank": 8},
        {"vocab_size": None},
        {"hybrid_override_pattern": "?"},
        {"quantization": {"bits": "x"}},
    ],
)
def test_damaged_configuration_is_one_line(damage: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="dimensions") as error:
        ModelDims.of({**LLAMA, **damage}, "damaged")
    assert "\n" not in str(error.value)
