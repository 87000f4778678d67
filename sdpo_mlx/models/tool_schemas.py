"""Tool schemas in a chat template; text in a schema never becomes a control token.

A template may compare, sort and serialize parts of a schema, so its strings cannot be replaced by placeholders as
messages are. Instead every control token in them is broken up: marks are put between its characters while the
template is rendered and the result is split, and removed before anything is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.text import well_formed

MARK = chr(0xFFFFD)  # plane 15, private use, at the other end than the placeholders of messages
LONE = 0xF8000  # a control token of a single character, number k, becomes chr(LONE + k) meanwhile

_PRIVATE = re.compile("[\U000f0000-\U000fffff]")
_ESCAPED = re.compile(r"\\U000f[0-9a-f]{4}|\\udb[89ab][0-9a-f]", re.IGNORECASE)


@dataclass(frozen=True)
class Guard:
    """Marks the strings of schemas so that none contains a control token, and removes the marks."""

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
