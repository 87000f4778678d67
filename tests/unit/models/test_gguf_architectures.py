"""GGUF files of architectures that are only exported: transformers reads the same logits, or the layout is llama's."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import write_sample
from small_models import _COMMON, CONFIGS, write_config
from temp_folders import new_folder

from sdpo_mlx.backends.mlx.fuse import float_weights
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.gguf.reader import import_gguf, read_gguf
from sdpo_mlx.models.gguf.writer import gguf_architecture, write_gguf, write_gguf_lora

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
SMOLLM3 = {**_COMMON, **WIDE, "model_type": "smollm3", "num_hidden_layers": 4, "tie_word_embeddings": True}
GEMMA2 = {
    "model_type": "gemma2",
    "num_hidden_layers": 2,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}
CASES: dict[str, dict[str, Any]] = {
    "mistral": {**_COMMON, **WIDE, "model_type": "mistral", "tie_word_embeddings": False},
    "phi3": {**_COMMON, **WIDE, "model_type": "phi3", "partial_rotary_factor": 1.0},
    "gemma2": {**_COMMON, **WIDE, **GEMMA2},
    "qwen3_moe": {
        **CONFIGS["qwen3_moe"],
        **WIDE,
        "head_dim": 128,
        "moe_intermediate_size": 768,
    },  # transformers does not read it
}


@cache
def tokenizer_folder() -> Path:
    folder = new_folder("words")
    write_sample(folder / "first.gguf", "qwen2", "F32")
    return import_gguf(folder / "first.gguf", folder / "first")


def folder_of(tmp_path: Path, config: dict[str, Any]) -> Path:
    words = tokenizer_folder()
    rows = json.loads((words / "config.json").read_text())["vocab_size"]
    made = write_config(tmp_path / "base", {**config, "vocab_size": rows})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(words / name, made / name)
    settings = json.loads((made / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]  # transformers' default for Phi-3 is an id of its vocabulary
    (made / "tokenizer_config.json").write_text(json.dumps(settings))
    return made


@pytest.mark.parametrize("name", CASES)
def test_transformers_reads_the_logits_of_mlx_lm(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="transformers reads GGUF weights with torch only")
    import mlx.core as mx
    from transformers import AutoModelForCausalLM

    from sdpo_mlx.backends.mlx.mlx_lm_api import load_model

    base = folder_of(tmp_path, CASES[name])
    write_gguf(base, float_weights(base), tmp_path / "m.gguf", "F16")
    ids = np.arange(24).reshape(2, 12) * 13 % 200
    wanted = np.array(load_model(base)[0](mx.array(ids)).astype(mx.float32))
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    with torch.no_grad():
        found = read.eval()(input_ids=torch.from_numpy(ids)).logits.numpy()
    assert np.abs(found - wanted).max() < 2e-2 * np.abs(wanted).max()
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


def test_smollm3_has_llamas_layout(tmp_path: Path) -> None:
    base = folder_of(tmp_path, SMOLLM3)
    write_gguf(base, float_weights(base), tmp_path / "smollm3.gguf", "F16")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    write_gguf(base, float_weights(base), tmp_path / "llama.gguf", "F16")
    (meta, ours), (_, llama) = (read_gguf(tmp_path / f"{name}.gguf") for name in ("smollm3", "llama"))
    assert meta["general.architecture"] == "smollm3"
    assert ours.keys() == llama.keys()
    assert all(np.array_equal(ours[name].data, llama[name].data) for name in ours)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**CASES["mistral"], "sliding_window": 128}, "sliding window"),
        ({**SMOLLM3, "no_rope_layers": [1, 1, 1, 1]}, "RoPE"),
        ({**CASES["qwen3_moe"], "norm_topk_prob": False}, "experts"),
        ({**CASES["gemma2"], "query_pre_attn_scalar": 100}, "scale of queries"),
        ({**CASES["phi3"], "rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"model_type": "qwen3_5"}, "qwen3_5"),
    ],
)
def test_what_readers_would_take_otherwise_is_refused_with_an_export_that_works(
    config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        gguf_architecture(config)
    assert "se --to fused" in caught.value.line()


def test_adapted_experts_are_refused_as_a_gguf_adapter(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CASES["qwen3_moe"]))
    arrays = {"model.layers.0.mlp.switch_mlp.up_proj.lora_a": np.zeros((4, 2, 8), np.float32)}
    adapter = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 1.0}}
    with pytest.raises(ConfigError, match="experts"):
        write_gguf_lora(tmp_path, arrays, adapter, tmp_path / "x.gguf")
