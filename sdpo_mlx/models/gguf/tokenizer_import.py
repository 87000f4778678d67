"""Convert a GGUF's vocabulary to `tokenizer.json` and `tokenizer_config.json`.

Uses only the `tokenizers` library: transformers can read a GGUF's vocabulary too, but only if torch is
installed, and it supports fewer pre-tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.gguf.config import CONTROL, Metadata, architecture

if TYPE_CHECKING:
    from tokenizers import Tokenizer

USER_DEFINED = 4
_SPACE = "\u2581"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# Pattern of the pre-tokenizer by its name in the file; None: GPT-2's.
CUTS: Mapping[str, str | None] = {
    "gpt-2": None,
    "smollm": None,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
}


def write_tokenizer(metadata: Metadata, folder: Path) -> None:
    """Write both files; the chat template goes into the second.

    Raises ConfigError for a vocabulary or a pre-tokenizer that is not supported.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ConfigError("the GGUF holds no vocabulary", fix="use a file with a tokenizer inside")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens)
    else:
        raise ConfigError(f"GGUF tokenizer {kind!r} is not supported", fix="use a file with one of: gpt2, llama")
    _add_whole_tokens(tokenizer, metadata, tokens)
    _add_start(tokenizer, metadata, tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(_settings(metadata, tokens), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _byte_level(metadata: Metadata, tokens: list[str]) -> Tokenizer:
    """Return a byte-level BPE (as GPT-2) with the pre-tokenizer that the file names."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut_name = _cut_name(metadata)
    merges = [_pair(merge) for merge in metadata.get("tokenizer.ggml.merges") or []]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    llama3 = CUTS[cut_name] == _LLAMA3  # its vocabulary holds entries that no merge reaches
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=llama3))
    cut = CUTS[cut_name]
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut_name == "smollm" else []
    if cut is not None:
        steps.append(pre_tokenizers.Split(Regex(cut), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if cut == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _cut_name(metadata: Metadata) -> str:
    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    if name == "default" and architecture(metadata).startswith("qwen"):
        return "qwen2"  # files written before the key existed
    if name not in CUTS:
        known = ", ".join(CUTS)
        raise ConfigError(f"GGUF pre-tokenizer {name!r} is not supported", fix=f"use a file with one of: {known}")
    return name


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece(metadata: Metadata, tokens: list[str]) -> Tokenizer:
    """Return a BPE over characters with U+2581 for spaces and byte fallback (Llama 2, Gemma)."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    gemma = architecture(metadata) == "gemma3"
    if gemma:  # the converter writes runs of spaces; the merges are in terms of U+2581
        tokens = [_SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    scores = metadata.get("tokenizer.ggml.scores")
    if gemma or not scores:  # Gemma's pieces are in the order of their merges, its scores are not
        scores = [-float(index) for index in range(len(tokens))]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, scores),
            unk_token=tokens[int(unknown)] if unknown is not None else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", not gemma))
    spelled = normalizers.Replace(" ", _SPACE)
    steps = [normalizers.Prepend(_SPACE), spelled] if prefix else [spelled]
    tokenizer.normalizer = normalizers.Sequence(steps)
    undo = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return the merges that a vocabulary implies: every split of a piece into two pieces, the best piece first."""
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece, index in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], left, right, (piece[:cut], piece[cut:])))
    return [pair for *_, pair in sorted(found)]


def _add_whole_tokens(tokenizer: Tokenizer, metadata: Metadata, tokens: list[str]) -> None:
    """Add control tokens as special tokens and user-defined ones as plain added tokens: neither is ever split."""
    from tokenizers import AddedToken

    kinds = metadata.get("tokenizer.ggml.token_type") or []
    for token, kind in zip(tokens, kinds, strict=False):
        if kind == CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED and token.strip(" ") and tokenizer.token_to_id(token) is not None:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
    if tokenizer.get_vocab_size() != len(tokens):
        raise ConfigError("the GGUF's vocabulary contains a token twice", fix="get the file again")


def _add_start(tokenizer: Tokenizer, metadata: Metadata, tokens: list[str]) -> None:
    from tokenizers import processors

    index = metadata.get("tokenizer.ggml.bos_token_id")
    if index is None or not _starts(metadata):
        return
    start = tokens[int(index)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[start, "$A"], pair=[start, "$A", f"{start}:1", "$B:1"], special_tokens=[(start, int(index))]
    )


def _starts(metadata: Metadata) -> bool:
    """Whether a text begins with the BOS token; by default as usual in the family."""
    sentencepiece = metadata.get("tokenizer.ggml.model") == "llama"
    default = sentencepiece or CUTS.get(str(metadata.get("tokenizer.ggml.pre"))) == _LLAMA3
    return bool(metadata.get("tokenizer.ggml.add_bos_token", default))


def _settings(metadata: Metadata, tokens: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(metadata.get(f"{architecture(metadata)}.context_length", 4096)),
    }
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for name, key in names.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            settings[name] = tokens[int(index)]
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return settings
