"""Convert a GGUF's vocabulary to `tokenizer.json` and `tokenizer_config.json`, and back.

Uses only the `tokenizers` library: transformers can read a GGUF's vocabulary too, but only if torch is
installed, and it supports fewer pre-tokenizers. A GGUF holds the name of the pre-tokenizer, not its pattern.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.gguf.config import CONTROL, Metadata, architecture
from sdpo_mlx.models.tokenizer import auto_tokenizer, opening_ids

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from tokenizers import Tokenizer

NORMAL, USER_DEFINED, UNUSED, BYTE = 1, 4, 5, 6  # kinds of tokens, beside CONTROL
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
_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}  # here -> GGUF
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_EXPORTED = ("gpt-2", "smollm", "qwen2", "llama-bpe")  # names of pre-tokenizers that an export may have


def write_tokenizer(metadata: Metadata, folder: Path) -> None:
    """Write both files; the chat template goes into the second.

    Raises ConfigError for a vocabulary or a pre-tokenizer that is not supported.
    """
    from tokenizers import processors

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
    index = metadata.get("tokenizer.ggml.bos_token_id")
    llama3 = CUTS.get(str(metadata.get("tokenizer.ggml.pre"))) == _LLAMA3
    usual = metadata.get("tokenizer.ggml.model") == "llama" or llama3  # whether the family begins texts with it
    if index is not None and metadata.get("tokenizer.ggml.add_bos_token", usual):
        start = tokens[int(index)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[start, "$A"], pair=[start, "$A", f"{start}:1", "$B:1"], special_tokens=[(start, int(index))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(_settings(metadata, tokens), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _byte_level(metadata: Metadata, tokens: list[str]) -> Tokenizer:
    """Return a byte-level BPE (as GPT-2) with the pre-tokenizer that the file names."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut_name = str(metadata.get("tokenizer.ggml.pre", "default"))
    if cut_name == "default" and architecture(metadata).startswith("qwen"):
        cut_name = "qwen2"  # files written before the key existed
    if cut_name not in CUTS:
        what = f"GGUF pre-tokenizer {cut_name!r} is not supported"
        raise ConfigError(what, fix=f"use a file with one of: {', '.join(CUTS)}")
    cut = CUTS[cut_name]
    merges = [merge.partition(" ")[::2] for merge in metadata.get("tokenizer.ggml.merges") or []]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    llama3 = cut == _LLAMA3  # its vocabulary holds entries that no merge reaches
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=llama3))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut_name == "smollm" else []
    if cut is not None:
        steps.append(pre_tokenizers.Split(Regex(cut), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if cut == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


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


def _settings(metadata: Metadata, tokens: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(metadata.get(f"{architecture(metadata)}.context_length", 4096)),
    }
    for name, key in _IDS.items():
        if (index := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            settings[name] = tokens[int(index)]
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return settings


def add_vocabulary(writer: GGUFWriter, folder: Path, rows: int) -> None:
    """Write tokens, merges, control tokens and chat template; `rows` is the size of the embedding, padded up to.

    Raises ConfigError for a kind of tokenizer that GGUF does not support.
    """
    pre, whole = pre_name(folder), json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    model, added = whole["model"], {each["id"]: each for each in whole.get("added_tokens", ())}
    tokens = {index: token for token, index in model["vocab"].items()}
    tokens |= {index: each["content"] for index, each in added.items()}
    names = [tokens.get(index, f"[PAD{index}]") for index in range(rows)]
    kinds = [NORMAL] * rows
    for index, name in enumerate(names):
        if index not in tokens:
            kinds[index] = UNUSED
        elif index in added:
            kinds[index] = CONTROL if added[index].get("special") else USER_DEFINED
        elif _BYTE.fullmatch(name):
            kinds[index] = BYTE
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre(pre)
        # Pieces are in the order of their merges, so that their positions are scores.
        writer.add_token_scores([-float(index) for index in range(rows)])
        writer.add_add_space_prefix("Prepend" in json.dumps(whole.get("normalizer")))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in model["merges"]])
    _write_control(writer, folder, settings, {token: index for index, token in enumerate(names)})


def pre_name(folder: Path) -> str:
    """Return GGUF's name for a model's pre-tokenizer; raises ConfigError if its tokenizer cannot be written."""
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, cutting = whole["model"], whole.get("pre_tokenizer") or {}
    if model.get("type") != "BPE":
        what = f"a tokenizer of type {model.get('type')} cannot be written to GGUF"
        raise ConfigError(what, where=str(folder), fix="use --to fused")
    if model.get("byte_fallback"):
        return "default"
    parts = cutting.get("pretokenizers", [cutting])
    kinds = [each.get("type") for each in parts]
    patterns = [each["pattern"].get("Regex") for each in parts if each.get("type") == "Split"]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex"):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    for name in _EXPORTED:
        if patterns and patterns == [CUTS[name]]:
            return name
    fix = f"use --to fused; GGUF is written for {', '.join(_EXPORTED)} and SentencePiece"
    raise ConfigError("the base's pre-tokenizer has no name in GGUF", where=str(folder), fix=fix)


def _write_control(writer: GGUFWriter, folder: Path, settings: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    for name in _IDS:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in ids:
            getattr(writer, f"add_{name}_id")(ids[token])
    files = (folder / "generation_config.json", folder / "config.json")
    configs = (json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file())
    ends = next((found for each in configs if (found := each.get("eos_token_id")) is not None), None)
    if isinstance(ends, list) and len(ends) > 1:  # the first may end a document; the other one ends a turn
        writer.add_eot_token_id(next(iter(e for e in ends if e != ids.get(str(settings.get("eos_token")))), ends[0]))
    tokenizer = auto_tokenizer().from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    writer.add_add_bos_token(bool(opening_ids(tokenizer)))
    template = settings.get("chat_template")
    if (file := folder / "chat_template.jinja").is_file():
        template = file.read_text(encoding="utf-8")
    if isinstance(template, str):
        writer.add_chat_template(template)
