"""A tokenizer split into control tokens and encoders that cannot produce them; tool schemas without control tokens."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.text import well_formed

Frame = tuple[int | str, ...]  # ids of control tokens, and the plain text between them
MARK = chr(0xFFFFD)  # plane 15, private use, at the other end than the placeholders of messages
LONE = 0xF8000  # a control token of a single character, number k, becomes chr(LONE + k) meanwhile

_PRIVATE = re.compile("[\U000f0000-\U000fffff]")
_ESCAPED = re.compile(r"\\U000f[0-9a-f]{4}|\\udb[89ab][0-9a-f]", re.IGNORECASE)


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


def _pattern(added: list[dict[str, Any]]) -> re.Pattern[str] | None:
    """Match a control token, the longest first, with the whitespace that its flags strip."""
    alternatives = []
    for token in sorted(added, key=lambda token: -len(token["content"])):
        core = re.escape(str(token["content"]))
        core = rf"(?<!\w){core}(?!\w)" if token["single_word"] else core
        left, right = (r"\s*" if token[side] else "" for side in ("lstrip", "rstrip"))
        alternatives.append(left + core + right)
    return re.compile("|".join(alternatives)) if alternatives else None


@dataclass(frozen=True)
class Guard:
    """Marks the strings of schemas so that none contains a control token, and removes the marks.

    A template may compare, sort and serialize parts of a schema, so its strings cannot be replaced by placeholders as
    messages are. Instead every control token in them is broken up: marks are put between its characters while the
    template is rendered and the result is split, and removed before anything is encoded.
    """

    marks: Mapping[int, str]
    unmarks: Mapping[int, str]
    words: re.Pattern[str] | None  # control tokens that begin with a letter or digit

    def mark(self, value: Any) -> Any:
        """Return the JSON value with every string and every field name marked; plane 15 becomes U+FFFD."""
        if isinstance(value, str):
            text = _PRIVATE.sub("\ufffd", well_formed(value)).translate(self.marks)
            return self.words.sub(lambda found: MARK.join(found[0]), text) if self.words else text
        if isinstance(value, Mapping):
            return {self.mark(str(name)): self.mark(item) for name, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list | tuple) else value

    def unmark(self, text: str) -> str:
        """Return a piece between control tokens without marks."""
        return text.translate(self.unmarks)


def guard(controls: Iterable[str]) -> Guard:
    """Return the guard against these control tokens.

    A mark follows each character that begins a token, so a token is broken up even if a template joins it from
    two strings, or changes its case.
    """
    tokens = sorted(controls)
    lone = {ord(token): chr(LONE + k) for k, token in enumerate(t for t in tokens if len(t) == 1)}
    openers = {ord(token[0]): token[0] + MARK for token in tokens if len(token) > 1 and not token[0].isalnum()}
    words = [
        re.escape(token) for token in sorted(tokens, key=len, reverse=True) if len(token) > 1 and token[0].isalnum()
    ]
    unmarks = {ord(MARK): "", **{ord(mark): chr(token) for token, mark in lone.items()}}
    return Guard({**openers, **lone}, unmarks, re.compile("|".join(words)) if words else None)


def check_shown(text: str, without: str) -> None:
    """Raise ConfigError if a prompt is the same `without` its tools, or escapes them."""
    fix = "choose a task that writes its tools into the question, such as tools in place of tools:json"
    if text == without:
        raise ConfigError("the model's chat template does not support tools", where="task.name", fix=fix)
    if _ESCAPED.search(text):
        raise ConfigError("the model's chat template cannot show these tools", where="task.name", fix=fix)
