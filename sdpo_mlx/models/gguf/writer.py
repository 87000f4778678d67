"""Write a model folder as one GGUF file: the reverse of `reader.py`.

In the format Llama's query and key rows are interleaved, Gemma's norms are stored + 1, vectors are float32. What a
reader takes for granted in an architecture instead of reading it from the file is checked (`_SAME`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.gguf.config import llama3_divisors
from sdpo_mlx.models.gguf.tokenizer import add_vocabulary, pre_name

Kind = Literal["F16", "BF16", "Q8_0"]
Values = npt.NDArray[np.float32]
_MODEL_TYPES = {  # the architecture in the format, by `model_type` in config.json
    "llama": "llama",
    "mistral": "llama",
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
_INTERLEAVED = ("llama", "smollm3")
_SHIFTED = ("gemma2", "gemma3")  # norms are stored + 1
# What readers of an architecture assume, as a test of the configuration and what it may not have.
_SAME: Mapping[str, tuple[Callable[[Mapping[str, Any]], bool], str]] = {
    "llama": (lambda c: c["model_type"] != "mistral" or not c.get("sliding_window"), "a sliding window"),
    "smollm3": (
        lambda c: not c.get("use_sliding_window") and _rotated(c) == [1, 1, 1, 0] * (c["num_hidden_layers"] // 4),
        "other layers without RoPE than each fourth, or a sliding window",
    ),
    "qwen3moe": (
        lambda c: bool(c.get("norm_topk_prob")) and c.get("decoder_sparse_step", 1) == 1 and not c["mlp_only_layers"],
        "dense layers, or weights of experts that are not normalized",
    ),
    "gemma2": (lambda c: _by_width(c, 46), "another scale of queries than by the width of a head"),
    "gemma3": (lambda c: _by_width(c, 62), "another scale of queries than by the width of a head"),
}
_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(\w+\.weight)")
_QUANT_ROW = 32  # values that Q8_0 packs together


def write_gguf(folder: Path, weights: Iterable[tuple[str, Values]], out: Path, kind: Kind, title: str = "") -> None:
    """Write the model of `folder` with these float32 weights (by Hugging Face name) to `out`.

    `title` is the model's name in the file, by default that of the folder.

    Raises ConfigError for an architecture, a tokenizer or a RoPE scaling that is not supported.
    """
    from gguf import LlamaFileType

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arch = gguf_architecture(config)
    with _gguf_file(out, arch, use_temp_file=True) as writer:
        writer.add_name(title or folder.name)
        writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"])
        _add_shape(writer, arch, config)
        add_vocabulary(writer, folder, int(config["vocab_size"]))
        for name, values in _tensors(arch, config, weights):
            _add(writer, name, values, kind)


def write_gguf_lora(
    folder: Path, arrays: Mapping[str, npt.NDArray[Any]], adapter: Mapping[str, Any], out: Path, title: str = ""
) -> None:
    """Write a LoRA in mlx-lm's layout as a GGUF adapter for the base of `folder`.

    Raises ConfigError for DoRA and full weights, which GGUF adapters cannot hold.
    """
    from gguf import GGUFType

    if adapter.get("fine_tune_type") != "lora":
        fix = "use --to gguf, which fuses it"
        raise ConfigError("a GGUF adapter can only hold a plain LoRA", where="--to", fix=fix)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arch, settings = gguf_architecture(config), adapter["lora_parameters"]
    if stacked := [name for name, array in arrays.items() if array.ndim > 2]:
        what = f"a GGUF adapter cannot hold adapted experts ({stacked[0]})"
        raise ConfigError(what, where="--to", fix="use --to gguf, which fuses them")
    with _gguf_file(out, arch) as writer:
        writer.add_type(GGUFType.ADAPTER)
        writer.add_name(title or out.stem)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(settings["scale"] * settings["rank"]))
        for name, array in arrays.items():
            path, _, factor = name.rpartition(".")
            turned = np.ascontiguousarray(array.T, dtype=np.float32)
            if factor == "lora_b":  # (out, r): its rows are those of the layer
                turned = _converted(arch, config, f"{path}.weight", turned)
            writer.add_tensor(f"{_gguf_name(arch, config, path)}.weight.{factor}", np.ascontiguousarray(turned))


@contextmanager
def _gguf_file(out: Path, arch: str, **options: Any) -> Iterator[Any]:
    """Open a file to fill, which is written when the block ends."""
    from gguf import GGUFWriter

    with closing(GGUFWriter(out, arch, **options)) as writer:
        yield writer
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()


def check_gguf(folder: Path) -> None:
    """Raise ConfigError if the model of a folder cannot be written as GGUF; reads no weights."""
    gguf_architecture(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    pre_name(folder)


def can_be_gguf(folder: Path) -> bool:
    """Return whether `check_gguf` accepts a folder; a damaged one is not."""
    try:
        check_gguf(folder)
    except (ConfigError, OSError, ValueError, KeyError):
        return False
    return True


def gguf_architecture(config: Mapping[str, Any]) -> str:
    """Return the format's name of an architecture; raises ConfigError for a model that it cannot hold."""
    kind = str(config.get("model_type"))
    found = _MODEL_TYPES.get(kind)
    if found is None:
        fix = f"use --to fused; GGUF is written for {', '.join(_MODEL_TYPES)}"
        raise ConfigError(f"{kind!r} cannot be written as GGUF", where="--to", fix=fix)
    fits, other = _SAME.get(found, (lambda _: True, ""))
    if not fits(config):
        what = f"readers of GGUF assume that {kind} has not {other}"
        raise ConfigError(what, where="--to", fix="use --to fused")
    _scaling(config)
    return found


def _by_width(config: Mapping[str, Any], largest: int) -> bool:
    """Whether queries are scaled by the width of a head; in the 27B model, known by its layers, they are not."""
    return bool(
        config["num_hidden_layers"] == largest or config.get("query_pre_attn_scalar", 256) == config["head_dim"]
    )


def _rotated(config: Mapping[str, Any]) -> list[int]:
    """Whether each layer of a SmolLM3 rotates its queries and keys: 1 or 0."""
    step, layers = int(config.get("no_rope_layer_interval") or 4), int(config["num_hidden_layers"])
    return list(config.get("no_rope_layers") or [int((i + 1) % step != 0) for i in range(layers)])


def _add_shape(writer: Any, arch: str, config: Mapping[str, Any]) -> None:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    width = config.get("head_dim") or hidden // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(int(width * _rope(config).get("partial_rotary_factor", 1.0)))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_freq_base(_rope(config).get("rope_theta", 10_000.0))
    _add_special(writer, arch, config)
    scaling = _scaling(config)
    if scaling.get("rope_type") == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])


def _add_special(writer: Any, arch: str, config: Mapping[str, Any]) -> None:
    """Write what only this architecture has."""
    if arch == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_uint32("gemma3.attention.sliding_window_pattern", config.get("sliding_window_pattern", 6))
        writer.add_float32("gemma3.rope.freq_base_swa", config.get("rope_local_base_freq", 10_000.0))
    elif arch == "gemma2":
        writer.add_sliding_window(config.get("sliding_window", 4096))
        writer.add_attn_logit_softcapping(config.get("attn_logit_softcapping", 50.0))
        writer.add_final_logit_softcapping(config.get("final_logit_softcapping", 30.0))
    elif arch == "phi3":  # without a sliding window, zero: that tells Phi-4 from the older ones
        writer.add_rope_scaling_orig_ctx_len(
            config.get("original_max_position_embeddings", config["max_position_embeddings"])
        )
        writer.add_sliding_window(config.get("sliding_window") or 0)
    elif arch == "qwen3moe":
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the dictionary with the RoPE settings: `rope_parameters` since transformers 5."""
    found: Mapping[str, Any] = config.get("rope_parameters") or config
    return found


def _scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ConfigError(f"rope scaling {kind!r} cannot be written as GGUF", where="--to", fix="use --to fused")
    return {**found, "rope_type": kind}


def _tensors(
    arch: str, config: Mapping[str, Any], weights: Iterable[tuple[str, Values]]
) -> Iterator[tuple[str, Values]]:
    scaling = _scaling(config)
    if scaling["rope_type"] == "llama3":
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        divisors = llama3_divisors(scaling, _rope(config)["rope_theta"], width)
        yield "rope_freqs.weight", divisors.astype(np.float32)
    for name, values in _stacked(weights, int(config.get("num_experts") or 0)):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        path, _, leaf = name.rpartition(".")
        yield f"{_gguf_name(arch, config, path)}.{leaf}", _converted(arch, config, name, values)


def _stacked(weights: Iterable[tuple[str, Values]], count: int) -> Iterator[tuple[str, Values]]:
    """Yield the weights with the experts of a layer as one tensor, by mlx-lm's name for it."""
    waiting: dict[str, dict[int, Values]] = {}
    for name, values in weights:
        found = _EXPERT.fullmatch(name)
        if found is None:
            yield name, values
            continue
        whole = f"{found[1]}.switch_mlp.{found[3]}"
        held = waiting.setdefault(whole, {})
        held[int(found[2])] = values
        if len(held) == count:
            yield whole, np.stack([held[index] for index in range(count)])
            del waiting[whole]
    if waiting:
        raise ConfigError(f"{next(iter(waiting))} lacks experts", where="--to", fix="get the base model again")


def _gguf_name(arch: str, config: Mapping[str, Any], path: str) -> str:
    found = _name_map(arch, config["num_hidden_layers"]).get_name(path.replace(".switch_mlp.", ".experts."))
    if found is None:
        raise ConfigError(f"{path} has no name in GGUF", where="--to", fix="use --to fused")
    return str(found)


@cache
def _name_map(arch: str, layers: int) -> Any:
    from gguf import MODEL_ARCH, get_tensor_name_map

    return get_tensor_name_map(MODEL_ARCH[arch.upper()], layers)


def _converted(arch: str, config: Mapping[str, Any], name: str, values: Values) -> Values:
    """Return the values as the format stores them: Llama's heads interleaved, Gemma's norms + 1."""
    if arch in _SHIFTED and name.endswith("norm.weight"):
        return values + np.float32(1)
    found = name.rpartition("self_attn.")[2]
    if arch in _INTERLEAVED and found.partition(".")[0] in ("q_proj", "k_proj"):
        heads = config["num_attention_heads"]
        heads = heads if found.startswith("q") else config.get("num_key_value_heads", heads)
        return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return values


def _add(writer: Any, name: str, values: Values, kind: Kind) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if values.ndim == 1:
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
        return
    own = "F16" if kind == "Q8_0" and values.shape[-1] % _QUANT_ROW else kind
    chosen = GGMLQuantizationType[own]
    writer.add_tensor(name, quantize(np.ascontiguousarray(values, dtype=np.float32), chosen), raw_dtype=chosen)
