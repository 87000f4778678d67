"""A tokenizer split into its control tokens and two encoders that cannot produce them."""

from __future__ import annotations

import copy
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

Frame = tuple[int | str, ...]  # ids of control tokens, and the plain text between them


@dataclass(frozen=True)
class Vocabulary:
    """The control tokens of a tokenizer, and two encoders that cannot produce them.

    `first` encodes a text that opens a prompt, `later` one after a control token; they differ only if
    the tokenizer prefixes a space at the very start.
    """

    controls: dict[str, int]
    pattern: re.Pattern[str] | None
    control_ids: frozenset[int]
    first: Any
    later: Any

    @classmethod
    def parse(cls, serialized: str) -> Vocabulary:
        """Split a tokenizer's JSON.

        All added tokens are control tokens, except runs of whitespace (Gemma, NeoX), which are ordinary text.
        In the encoders each control token is renamed, in vocabulary and merges, to a random name.
        """
        spec = json.loads(serialized)
        added = [token for token in spec["added_tokens"] if token["special"] or token["content"].strip(" \t\r\n\u2581")]
        names = {token["content"]: f"{secrets.token_hex(16)}-{token['id']}" for token in added}
        controls = {token["content"]: int(token["id"]) for token in added}
        ids = frozenset(i for content, i in controls.items() if content != spec["model"].get("unk_token"))
        inert = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
        renamed = [
            {**token, **inert, "content": names[token["content"]]} if token["content"] in names else token
            for token in spec["added_tokens"]
        ]
        spec |= {"post_processor": None, "truncation": None, "padding": None, "added_tokens": renamed}
        spec["model"] = _renamed_model(spec["model"], names)
        first, without_prefix = _encoder(spec), _never_prefixed(spec)
        later = first if without_prefix == spec else _encoder(without_prefix)
        return cls(controls, _pattern(added), ids, first, later)

    def split(self, text: str) -> Frame:
        """Cut a text at its control tokens, which become ids; the whitespace that their flags strip is gone."""
        if self.pattern is None:
            return (text,) if text else ()
        pieces: list[int | str] = []
        position = 0
        for match in self.pattern.finditer(text):
            token = match[0] if match[0] in self.controls else match[0].strip()
            pieces += [text[position : match.start()], self.controls[token]]
            position = match.end()
        return tuple(piece for piece in (*pieces, text[position:]) if piece != "")


def _encoder(spec: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(spec))


def _renamed_model(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return the model with renamed entries: ids stay, and no merge leads to a control token any more."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        renamed: Any = {names.get(piece, piece): i for piece, i in vocabulary.items()}
    else:
        renamed = [[names.get(piece, piece), score] for piece, score in vocabulary]
    model = {**model, "vocab": renamed}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = ((merge, merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model["merges"])
        model["merges"] = [merge for merge, (a, b) in pairs if not names.keys() & {a, b, a + b}]
    return model


def _never_prefixed(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer for a piece that is not the first of its prompt."""
    spec = {**spec, "pre_tokenizer": copy.deepcopy(spec["pre_tokenizer"])}
    parts = spec["pre_tokenizer"] or {}
    for part in parts.get("pretokenizers", [parts]):
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    return spec


def _pattern(added: list[dict[str, Any]]) -> re.Pattern[str] | None:
    """Match a control token, the longest first, with the whitespace that its flags strip."""
    alternatives = []
    for token in sorted(added, key=lambda token: -len(token["content"])):
        core = re.escape(str(token["content"]))
        core = rf"(?<!\w){core}(?!\w)" if token["single_word"] else core
        left, right = (r"\s*" if token[side] else "" for side in ("lstrip", "rstrip"))
        alternatives.append(left + core + right)
    return re.compile("|".join(alternatives)) if alternatives else None
