"""A tokenizer split into control tokens and encoders that cannot produce them."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.models.traced_template import HIDDEN, TracedText, hidden

Pieces = tuple[int | str, ...]  # ids of control tokens, and the plain text between them

_OWN = re.compile(f"[^{HIDDEN}]+")


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
        first = later = _encoder(spec)
        parts = spec["pre_tokenizer"] or {}
        for part in parts.get("pretokenizers", [parts]):
            if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
                part["prepend_scheme"] = "never"  # of a piece that is not the first of its prompt
                later = _encoder(spec)
        return cls(controls, _pattern(added), ids, first, later)

    def split(self, text: TracedText) -> Pieces:
        """Cut a text at the template's own control tokens; the whitespace that their flags strip is gone.

        A string with a control token that is not wholly the template's stays text.
        """
        whole = str.__getitem__(text, slice(None))
        if self.pattern is None:
            return (whole,) if whole else ()
        pieces: list[int | str] = []
        position = 0
        for own in _OWN.finditer(hidden(text)):
            for match in self.pattern.finditer(whole, *own.span()):
                token = match[0] if match[0] in self.controls else match[0].strip()
                pieces += [whole[position : match.start()], self.controls[token]]
                position = match.end()
        return tuple(piece for piece in (*pieces, whole[position:]) if piece != "")

    def broken(self, text: str, mark: str) -> str:
        """Return the text with a mark after the first character of each control token."""
        pattern = self.pattern
        return pattern.sub(lambda m: m[0].replace((s := m[0].strip()), s[:1] + mark + s[1:]), text) if pattern else text


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


def _pattern(added: list[dict[str, Any]]) -> re.Pattern[str] | None:
    """Match a control token, the longest first, with the whitespace that its flags strip."""
    alternatives = []
    for token in sorted(added, key=lambda token: -len(token["content"])):
        core = re.escape(str(token["content"]))
        core = rf"(?<!\w){core}(?!\w)" if token["single_word"] else core
        left, right = (r"\s*" if token[side] else "" for side in ("lstrip", "rstrip"))
        alternatives.append(left + core + right)
    return re.compile("|".join(alternatives)) if alternatives else None
