"""Tiny GGUF files of known weights, written the way the converter to GGUF writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
HIDDEN, WIDE, HEADS, KV_HEADS, WINDOW = 256, 256, 4, 2, 8
CORPUS = [
    "the cat sat on the mat, the hat and the bat",
    "numbers 12345 and 2024",
    "don't won't it's",
    "  two  spaces\n\n",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
QUANTS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")


@dataclass(frozen=True)
class Sample:
    """`weights` by Hugging Face name, as float32 after rounding to the file's type."""

    path: Path
    arch: str
    weights: Mapping[str, np.ndarray]
    layers: int
    head_dim: int
    vocabulary: int


def head_dim(arch: str) -> int:
    """The real families' widths: transformers' reader takes these two for granted instead of reading them."""
    return {"qwen3": 128, "gemma3": 256}.get(arch, HIDDEN // HEADS)


@cache
def trained_tokenizer(cut: str | None = None, digits: bool = False) -> Tokenizer:
    """A byte-level BPE of a few hundred tokens with the three specials at its front."""
    tokenizer = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps += [pre_tokenizers.Split(Regex(cut), behavior="isolated")] if cut else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str) -> int:
    import json

    content = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    return len(tokens)


def weights_of(arch: str, layers: int, vocabulary: int, tied: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, large enough for the logits to tell one position from another."""
    rng = np.random.default_rng(seed)
    head = head_dim(arch)
    q, kv = HEADS * head, KV_HEADS * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if arch == "gemma3" else []
    for layer in range(layers):
        base = f"model.layers.{layer}."
        shapes |= {f"{base}{norm}.weight": (HIDDEN,) for norm in norms}
        attention = {"q_proj": (q, HIDDEN), "k_proj": (kv, HIDDEN), "v_proj": (kv, HIDDEN), "o_proj": (HIDDEN, q)}
        shapes |= {f"{base}self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"{base}mlp.{name}_proj.weight": (WIDE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{base}mlp.down_proj.weight"] = (HIDDEN, WIDE)
        if arch in ("qwen3", "gemma3"):
            shapes |= {f"{base}self_attn.{name}_norm.weight": (head,) for name in "qk"}
        if arch == "qwen2":
            shapes |= {f"{base}self_attn.{n}_proj.bias": (w,) for n, w in (("q", q), ("k", kv), ("v", kv))}
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, HIDDEN)
    return {
        name: (_drawn(rng, shape) * 0.1 + ("norm" in name and arch != "gemma3")).astype(np.float32)
        for name, shape in shapes.items()
    }


def _drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal values; a large array repeats a prime number of them, so that no two of its rows are alike."""
    return np.resize(rng.standard_normal(min(int(np.prod(shape)), 65_521)), shape)


def random_blocks(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Bytes of a quantized matrix with sane scales: any quantized integers are valid ones."""
    block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = rng.integers(0, 256, (shape[0], shape[1] // block, width), dtype=np.uint8)
    scale = (rng.uniform(0.5, 1.0, (*data.shape[:2], 2)) * 2e-3).astype(np.float16).view(np.uint8)
    places = {"Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q4_1": (0, 2), "Q5_1": (0, 2)}.get(kind, (0,))
    for index, place in enumerate(places):
        data[:, :, place : place + 2] = scale[:, :, 2 * index : 2 * index + 2]
    return data.reshape(shape[0], -1)


def write_sample(
    path: Path, arch: str, kind: str = "F32", *, tied: bool = True, pre: str = "qwen2", seed: int = 0, linear: float = 0
) -> Sample:
    """One GGUF of the architecture, its matrices stored as `kind`, its vectors as F32."""
    layers = 7 if arch == "gemma3" else 2
    writer = gguf.GGUFWriter(path, arch)
    vocabulary = add_vocabulary(writer, trained_tokenizer(), pre)
    _add_settings(writer, arch, layers)
    if linear:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(linear)
    weights = weights_of(arch, layers, vocabulary, tied, seed)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], layers)
    for name, values in weights.items():
        stem, _, leaf = name.rpartition(".")
        weights[name] = _add_tensor(writer, arch, f"{names.get_name(stem)}.{leaf}", name, values, kind)
    if arch == "llama" and kind == "F32" and not tied:
        writer.add_tensor("rope_freqs.weight", _llama3_table())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return Sample(path, arch, weights, layers, head_dim(arch), vocabulary)


def _add_settings(writer: gguf.GGUFWriter, arch: str, layers: int) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50_000.0)
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim(arch))
    if arch in ("qwen3", "gemma3"):
        writer.add_key_length(head_dim(arch))
        writer.add_value_length(head_dim(arch))
    if arch == "gemma3":
        writer.add_sliding_window(WINDOW)


def _add_tensor(writer: gguf.GGUFWriter, arch: str, gguf_name: str, name: str, values: np.ndarray, kind: str):
    """Store one tensor and give back the weights that a reader must find."""
    if values.ndim == 1:
        writer.add_tensor(gguf_name, values + 1 if arch == "gemma3" else values)
        return (values + np.float32(1)) - np.float32(1) if arch == "gemma3" else values
    heads = {"q": HEADS, "k": KV_HEADS}.get(name.rpartition("self_attn.")[2][:1]) if arch == "llama" else None
    stored = _interleave(values, heads) if heads and "_proj" in name else values
    quant = gguf.GGMLQuantizationType[kind]
    rng = np.random.default_rng(values.size)
    data = random_blocks(kind, stored.shape, rng) if kind in QUANTS else gguf.quants.quantize(stored, quant)
    if kind == "Q8_0":  # one kind goes the whole way: the weights themselves, quantized
        data = gguf.quants.quantize(stored, quant)
    writer.add_tensor(gguf_name, data, raw_dtype=quant)
    back = gguf.quants.dequantize(data, quant).reshape(stored.shape)
    return _separate(back, heads) if heads and "_proj" in name else back


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """The converter's permutation: row i of the first half of a head beside row i of its second half."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


def _separate(weight: np.ndarray, heads: int) -> np.ndarray:
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(weight.shape)


def _llama3_table() -> np.ndarray:
    """Llama 3.2's divisors for these heads: wave by wave, as the converter writes them."""
    table = []
    for index in range(0, head_dim("llama"), 2):
        wave = 2 * np.pi * 50_000.0 ** (index / head_dim("llama"))
        smooth = (8192 / wave - 1) / (4 - 1)
        table.append(1.0 if wave < 8192 / 4 else 32.0 if wave > 8192 else 1 / ((1 - smooth) / 32 + smooth))
    return np.asarray(table, dtype=np.float32)
