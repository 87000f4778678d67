"""Write the vocabulary of a `tokenizer.json` into a GGUF: the reverse of `tokenizer_import.py`.

A GGUF holds the name of the pre-tokenizer, not its pattern; a pre-tokenizer without a name is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.gguf.config import CONTROL
from sdpo_mlx.models.gguf.tokenizer_import import CUTS, USER_DEFINED

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNUSED, BYTE = 1, 5, 6
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unk", "pad_token": "pad"}
_NAMES = ("gpt-2", "smollm", "qwen2", "llama-bpe")


def add_vocabulary(writer: GGUFWriter, folder: Path, rows: int) -> None:
    """Write tokens, merges, control tokens and chat template; `rows` is the size of the embedding, padded up to.

    Raises ConfigError for a kind of tokenizer that GGUF does not support.
    """
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    model, added = whole["model"], {each["id"]: each for each in whole.get("added_tokens", ())}
    if model.get("type") != "BPE":
        raise ConfigError(f"a tokenizer of type {model.get('type')} cannot be written to GGUF", where=str(folder))
    tokens = {index: token for token, index in model["vocab"].items()} | {
        i: each["content"] for i, each in added.items()
    }
    names = [tokens.get(index, f"[PAD{index}]") for index in range(rows)]
    kinds = [_kind(index, names[index], added, index in tokens) for index in range(rows)]
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    if model.get("byte_fallback"):
        _sentencepiece(writer, whole, rows)
    else:
        _byte_level(writer, whole)
    _control(writer, folder, settings, {token: index for index, token in enumerate(names)})


def end_ids(folder: Path) -> list[int]:
    """Return the end-of-sequence ids of the model's folder."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return list(found) if isinstance(found, list) else [int(found)]
    return []


def _kind(index: int, token: str, added: Mapping[int, Mapping[str, Any]], known: bool) -> int:
    if not known:
        return UNUSED
    if index in added:
        return CONTROL if added[index].get("special") else USER_DEFINED
    return BYTE if _BYTE.fullmatch(token) else NORMAL


def _byte_level(writer: GGUFWriter, whole: Mapping[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut_name(whole["pre_tokenizer"]))
    merges = whole["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])


def _sentencepiece(writer: GGUFWriter, whole: Mapping[str, Any], rows: int) -> None:
    """Pieces are in the order of their merges, so that their positions are scores."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(index) for index in range(rows)])
    writer.add_add_space_prefix("Prepend" in json.dumps(whole.get("normalizer")))


def _cut_name(cutting: Mapping[str, Any]) -> str:
    """Return GGUF's name for a pre-tokenizer; raises ConfigError if there is none."""
    parts = cutting.get("pretokenizers", [cutting])
    kinds = [each["type"] for each in parts]
    patterns = [each["pattern"].get("Regex") for each in parts if each["type"] == "Split"]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex"):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    for name in _NAMES:
        if patterns and patterns == [CUTS[name]]:
            return name
    known = ", ".join(_NAMES)
    raise ConfigError("this pre-tokenizer has no name in GGUF", fix=f"supported: {known}")


def _control(writer: GGUFWriter, folder: Path, settings: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    for key, ours in _IDS.items():
        token = settings.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in ids:
            getattr(writer, f"add_{ours}_token_id")(ids[token])
    ends = end_ids(folder)
    if len(ends) > 1:  # the first may end a document; the other one ends a turn
        writer.add_eot_token_id(next(iter(e for e in ends if e != ids.get(str(settings.get("eos_token")))), ends[0]))
    writer.add_add_bos_token(bool(settings.get("add_bos_token", False)))
    template = settings.get("chat_template")
    if (file := folder / "chat_template.jinja").is_file():
        template = file.read_text(encoding="utf-8")
    if isinstance(template, str):
        writer.add_chat_template(template)
