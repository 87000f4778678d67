"""Whether a tokenizer fits its model: each id that can occur in a prompt needs a row of the embedding."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.safetensors_io import read_headers

# Names of the token embedding in the architectures of mlx-lm and transformers; those of vision towers, positions and
# Gemma's per-layer inputs end differently.
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embedding|embeddings|tok_embed)\.weight$"
)
_NOT_TEXT = re.compile(r"vision|visual|audio|position|mtp")


def check_token_ids(folder: Path) -> None:
    """Refuse a tokenizer with an id that the embedding has no row for: torch fails on it, MLX reads past the end.

    Rows are read from the weights' header, otherwise `vocab_size`; ids from tokenizer.json, otherwise the added ones of
    tokenizer_config.json. A special token that neither the chat template nor a role as bos, eos, pad or unk can bring
    into a prompt is left alone: Gemma 3 1B has one for images, and no row for it. Raises ConfigError.
    """
    rows = embedding_rows(folder)
    if rows is None:
        return
    beyond = [each for each in _tokens(folder) if each[0] >= rows]
    named = _named(folder) if beyond else ""
    reachable = [(index, token) for index, token, special in beyond if not special or token in named]
    if reachable:
        index, token = max(reachable)
        raise ConfigError(
            f"the tokenizer has ids up to {index} ({token[:40]!r}), but the model has only {rows} embedding rows",
            where=str(folder),
            fix="use the tokenizer that the model was trained with, or resize the model's embeddings to it",
        )


def embedding_rows(folder: Path) -> int | None:
    """Return the rows of the token embedding, quantized or not; None if neither weights nor config.json name them."""
    found = [
        int(entry["shape"][0])
        for name, entry in read_headers(folder).items()
        if _EMBEDDING.search(name) and not _NOT_TEXT.search(name) and len(entry.get("shape", ())) == 2
    ]
    if found:
        return max(found)
    config = _json(folder / "config.json")
    text = config.get("text_config")
    size = (text if isinstance(text, Mapping) else config).get("vocab_size")
    return size if isinstance(size, int) and size > 0 else None


def _tokens(folder: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield id, text and whether it is special, of every token that the folder's files list."""
    content = _json(folder / "tokenizer.json")
    vocabulary = content.get("model", {}).get("vocab") if isinstance(content.get("model"), Mapping) else None
    added = {each["id"]: each for each in content.get("added_tokens") or () if isinstance(each.get("id"), int)}
    if isinstance(vocabulary, Mapping):
        yield from ((int(i), str(token), False) for token, i in vocabulary.items() if int(i) not in added)
    elif isinstance(vocabulary, list):  # Unigram: pairs of token and score, in the order of the ids
        yield from ((i, str(pair[0]), False) for i, pair in enumerate(vocabulary) if i not in added)
    if not added:
        decoder = _json(folder / "tokenizer_config.json").get("added_tokens_decoder")
        entries = decoder.items() if isinstance(decoder, Mapping) else ()
        added = {int(i): each for i, each in entries if str(i).isdigit() and isinstance(each, Mapping)}
    for i, each in added.items():
        yield i, str(each.get("content", "")), bool(each.get("special"))


def _named(folder: Path) -> str:
    """Return all text that can bring a special token into a prompt."""
    settings = _json(folder / "tokenizer_config.json")
    named = [settings.get(f"{role}_token") for role in ("bos", "eos", "pad", "unk")]
    text = json.dumps([named, settings.get("chat_template")], ensure_ascii=False)
    try:
        return text + (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return text


def _json(path: Path) -> Mapping[str, Any]:
    """Return a JSON object, empty if there is none: that it can be read is checked elsewhere."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
