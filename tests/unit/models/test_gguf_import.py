"""GGUF import: values, logits, tokens, and what happens to files that are not as they should be."""

from __future__ import annotations

import json
import os
import struct
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import (
    ARCHITECTURES,
    CORPUS,
    HEADS,
    HIDDEN,
    KV_HEADS,
    QUANTS,
    TEMPLATE,
    WIDE,
    WINDOW,
    Sample,
    trained_tokenizer,
    write_sample,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from temp_folders import new_folder
from tokenizers import Tokenizer

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.models import safetensors_io
from sdpo_mlx.models.gguf import reader
from sdpo_mlx.models.gguf.reader import import_gguf
from sdpo_mlx.models.gguf.tokenizer import write_tokenizer
from sdpo_mlx.models.safetensors_io import Stored, write_weights

QWEN2_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors as float32, read with nothing but the format's own description."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    found = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw[start:end], "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw[start:end], {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype(np.float32)
        found[name] = values.reshape(entry["shape"])
    return found


def mlx_logits(sample: Sample, ids: list[int], scaling: dict | None) -> np.ndarray:
    """What mlx-lm computes from the sample's weights and a configuration written here by hand."""
    import importlib

    import mlx.core as mx

    kind = "gemma3_text" if sample.arch == "gemma3" else sample.arch
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    config = {
        "model_type": kind,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": sample.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": sample.head_dim,
        "rms_norm_eps": 1e-5,
        "vocab_size": sample.vocabulary,
        "max_position_embeddings": 512,
        "rope_theta": 50_000.0,
        "rope_scaling": scaling,
        "tie_word_embeddings": "lm_head.weight" not in sample.weights,
    }
    if sample.arch == "gemma3":
        config |= {"sliding_window": WINDOW, "query_pre_attn_scalar": sample.head_dim}
    model = module.Model(module.ModelArgs.from_dict(config))
    model.load_weights(list(model.sanitize({k: mx.array(v) for k, v in sample.weights.items()}).items()))
    return np.array(model(mx.array([ids])))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_the_known_weights_after_import(tmp_path: Path, arch: str, tied: bool) -> None:
    mlx_lm = pytest.importorskip("mlx_lm", reason="the reference forward is mlx-lm's")
    import mlx.core as mx

    linear = 4.0 if arch == "gemma3" and not tied else 0
    sample = write_sample(tmp_path / "m.gguf", arch, "F32", tied=tied, linear=linear)
    model, tokenizer = mlx_lm.load(str(import_gguf(sample.path, tmp_path / "out")))
    ids = np.random.default_rng(1).integers(0, sample.vocabulary, 40).tolist()  # five windows of gemma's
    scaling = {"rope_type": "linear", "factor": linear} if linear else None
    if arch == "llama" and not tied:
        scaling = {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    reference = mlx_logits(sample, ids, scaling)
    assert np.abs(reference).max() > 0.5
    assert np.abs(np.array(model(mx.array([ids]))) - reference).max() < 1e-5
    assert tokenizer.eos_token_ids == {0, 2}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *QUANTS])
def test_stored_values_are_the_dequantized_ones_for_every_type(tmp_path: Path, kind: str) -> None:
    sample = write_sample(tmp_path / "m.gguf", "llama", kind)
    found = read_safetensors(import_gguf(sample.path, tmp_path / "out") / "model.safetensors")
    assert found.keys() == sample.weights.keys()
    for name, values in sample.weights.items():
        stored = values if kind != "F16" or values.ndim > 1 else values.astype(np.float16).astype(np.float32)
        tolerance = 2**-8 if kind == "BF16" and values.ndim == 1 else 0.0  # norms are F32 in the file, rounded here
        np.testing.assert_allclose(found[name], stored, rtol=tolerance, atol=0, err_msg=name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        pytest.param(arch, kind, marks=() if kind in ("F32", usual) or arch == "llama" else pytest.mark.slow)
        for arch, usual in zip(ARCHITECTURES, ("", "Q4_K", "Q6_K", "Q8_0"), strict=True)
        for kind in ("F32", "Q8_0", "Q4_K", "Q6_K")
    ],
)
@pytest.mark.long
def test_logits_agree_with_transformers_reading_of_the_same_file(tmp_path: Path, arch: str, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="transformers reads GGUF weights with torch only")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers asks for it when it reads a GGUF")
    sample = write_sample(tmp_path / f"{kind}.gguf", arch, kind)
    folder = import_gguf(sample.path, tmp_path / kind)
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(str(tmp_path), gguf_file=sample.path.name, dtype=torch.float32)
    ours = load(str(folder), dtype=torch.float32)
    ids = torch.arange(40)[None] % sample.vocabulary
    with torch.no_grad():
        difference = (theirs(ids).logits - ours(ids).logits).abs().max().item()
    assert difference < 1e-3


def test_pieces_and_shards_hold_the_same_values_as_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = write_sample(tmp_path / "m.gguf", "llama", "Q8_0")
    whole = read_safetensors(import_gguf(sample.path, tmp_path / "whole") / "model.safetensors")
    monkeypatch.setattr(reader, "_PIECE", 7 * HIDDEN)  # seven rows at a time
    cut = import_gguf(sample.path, tmp_path / "cut")
    assert (cut / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    stored = [Stored(name, values.shape, lambda v=values: iter([v])) for name, values in whole.items()]
    (tmp_path / "shards").mkdir()
    write_weights(tmp_path / "shards", stored, "float32", shard_bytes=300_000)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(read_safetensors(tmp_path / "shards" / file)[name], whole[name])


@given(st.lists(st.integers(0, 0x7F7F_0000), min_size=1), st.booleans())
def test_bfloat16_is_the_nearest_value_for_any_float(patterns: list[int], negative: bool) -> None:
    values = np.array([pattern | negative << 31 for pattern in patterns], dtype=np.uint32).view(np.float32)
    kept = np.frombuffer(safetensors_io._encode(values, "bfloat16", "x"), "<u2")
    exact, back = values.astype(np.float64), widened(kept)
    for beside in (kept - np.uint16(1), kept + np.uint16(1)):
        ours, others = np.abs(back - exact), np.abs(widened(beside) - exact)
        assert ((ours <= others) | (kept & 0x7FFF == 0) | ~np.isfinite(others)).all()
        tie = ours == others
        assert (kept[tie] % 2 == 0).all()


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float64 values."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize(
    ("pre", "cut", "digits"),
    [("qwen2", QWEN2_CUT, False), ("llama-bpe", LLAMA3_CUT, False), ("smollm", None, True), ("gpt-2", None, False)],
)
def test_byte_level_tokens_equal_those_of_the_tokenizer_that_was_packed(
    tmp_path: Path, pre: str, cut: str | None, digits: bool
) -> None:
    original = trained_tokenizer(cut, digits)
    content = json.loads(original.to_str())["model"]
    metadata = {
        "general.architecture": "qwen2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": sorted(content["vocab"], key=content["vocab"].get),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in content["merges"]],
        "tokenizer.ggml.token_type": [3, 3, 3],
    }
    write_tokenizer(metadata, tmp_path)
    imported = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    @settings(max_examples=60)
    @given(st.text(alphabet=st.characters(max_codepoint=0x24F, exclude_categories=["Cs"]), max_size=40))
    def same(text: str) -> None:
        assert imported.encode(text).ids == original.encode(text).ids
        assert imported.decode(imported.encode(text).ids) == text

    same()
    for text in [*CORPUS, "<|im_start|>user\nhi 42<|im_end|>"]:
        assert imported.encode(text).ids == original.encode(text).ids


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_sentencepiece_tokens_equal_sentencepieces_own(tmp_path: Path, arch: str) -> None:
    spm = pytest.importorskip("sentencepiece", reason="the reference for this kind of vocabulary")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 5),
        model_prefix=str(tmp_path / "spm"),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=arch == "llama",
        minloglevel=2,
    )
    original = spm.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    size = original.vocab_size()
    metadata = {
        "general.architecture": arch,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.add_space_prefix": arch == "llama",
        "tokenizer.ggml.tokens": [original.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": [original.get_score(i) for i in range(size)],
        "tokenizer.ggml.token_type": [
            2 if original.is_unknown(i) else 3 if original.is_control(i) else 6 if original.is_byte(i) else 1
            for i in range(size)
        ],
        "tokenizer.ggml.unknown_token_id": original.unk_id(),
        "tokenizer.ggml.bos_token_id": original.bos_id(),
        "tokenizer.ggml.eos_token_id": original.eos_id(),
    }
    write_tokenizer(metadata, tmp_path)
    imported = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ["the cat", "the hat and  two", "unseen: é ü 漢", "12345", "mat, bat"]:
        assert imported.encode(text).ids == [original.bos_id(), *original.encode(text)]
        assert imported.decode(imported.encode(text).ids) == text


def test_chat_template_and_every_end_token_survive_the_import(tmp_path: Path) -> None:
    folder = import_gguf(write_sample(tmp_path / "m.gguf", "qwen3").path, tmp_path / "out")
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def refused(path: Path, out: Path) -> str:
    """The one line of a refused import, which leaves nothing behind."""
    with pytest.raises(ConfigError) as caught:
        import_gguf(path, out)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == sorted(p for p in out.parent.iterdir() if p.suffix == ".gguf")
    return str(caught.value)


def test_truncated_file_is_refused_at_any_length(tmp_path: Path) -> None:
    content = write_sample(tmp_path / "m.gguf", "qwen3", "Q8_0").path.read_bytes()
    for share in (0, 1, 3, 20, 200, 2_000, len(content) // 100, len(content) // 2, len(content) - 1):
        (tmp_path / "m.gguf").write_bytes(content[:share])
        refused(tmp_path / "m.gguf", tmp_path / "out")


def test_absurd_counts_in_the_header_end_at_the_end_of_the_file(tmp_path: Path) -> None:
    content = bytearray(write_sample(tmp_path / "m.gguf", "llama").path.read_bytes())
    place = content.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    content[place : place + 8] = (1 << 60).to_bytes(8, "little")
    (tmp_path / "m.gguf").write_bytes(content)
    assert "damaged" in refused(tmp_path / "m.gguf", tmp_path / "out")


@cache
def sample_bytes() -> bytes:
    return write_sample(new_folder("flip") / "m.gguf", "llama", "Q8_0").path.read_bytes()


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 9_000), value=st.integers(0, 255))
def test_a_flipped_byte_in_the_header_imports_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    content = bytearray(sample_bytes())
    content[position] = value
    (folder / "m.gguf").write_bytes(content)
    refusal = ""
    try:
        import_gguf(folder / "m.gguf", folder / "out")
    except ConfigError as error:
        refusal = str(error)
    assert bool(refusal) != (folder / "out" / "config.json").is_file()
    assert "\n" not in refusal
    assert {path.name for path in folder.iterdir()} <= {"m.gguf", "out"}


@pytest.mark.parametrize(("old", "new", "said"), [(b"llama", b"bloom", "'bloom'"), (b"gpt2", b"bert", "'bert'")])
def test_unsupported_kinds_are_named(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    path = write_sample(tmp_path / "m.gguf", "llama").path
    path.write_bytes(path.read_bytes().replace(old, new))
    assert said in refused(path, tmp_path / "out")


def test_unsupported_tensor_type_is_named(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "m.gguf", "llama", "Q4_K").path
    content = path.read_bytes()
    name = b"blk.0.attn_q.weight"
    place = content.index(name) + len(name) + 4 + 16  # dimensions' count, then two of them
    assert content[place] == gguf.GGMLQuantizationType.Q4_K
    path.write_bytes(content[:place] + bytes([gguf.GGMLQuantizationType.Q2_K]) + content[place + 1 :])
    assert "Q2_K" in refused(path, tmp_path / "out")


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "m.gguf", "qwen2").path
    path.write_bytes(
        path.read_bytes().replace(b"qwen2.block_count\x04\x00\x00\x00\x02", b"qwen2.block_count\x04\x00\x00\x00\x03")
    )
    assert "model.layers.2" in refused(path, tmp_path / "out")


def test_value_too_large_for_the_chosen_type_is_refused(tmp_path: Path) -> None:
    stored = Stored("w", (2,), lambda: iter([np.array([1.0, 1e6], np.float32)]))
    with pytest.raises(OverflowError, match="float16"):
        write_weights(tmp_path, [stored], "float16")


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sample(tmp_path / "m.gguf", "llama").path

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(safetensors_io, "_encode", full)
    with pytest.raises(StorageError, match="Free some space"):
        import_gguf(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        import_gguf(write_sample(tmp_path / "m.gguf", "llama").path, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
