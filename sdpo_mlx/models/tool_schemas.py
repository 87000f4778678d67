"""Tool schemas on their way through a chat template, with every text in them kept inert.

A template may compare, order and serialise what a schema says, so its texts cannot be replaced as whole
messages can. Instead no control token is left whole in them: marks stand between its characters while the
template is rendered and the result is cut, and go before anything is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.text import well_formed

MARK = chr(0xFFFFD)  # plane 15, private use, at its other end than the stand-ins of messages
LONE = 0xF8000  # character k that is a control token all by itself is chr(LONE + k) meanwhile

_PRIVATE = re.compile("[\U000f0000-\U000fffff]")
_ESCAPED = re.compile(r"\\U000f[0-9a-f]{4}|\\udb[89ab][0-9a-f]", re.IGNORECASE)


@dataclass(frozen=True)
class Guard:
    """Marks the texts of schemas so that none holds a control token, and takes the marks away again."""

    marks: Mapping[int, str]
    unmarks: Mapping[int, str]
    words: re.Pattern[str] | None  # control tokens that begin with a letter or digit

    def mark(self, value: Any) -> Any:
        """The same JSON value with every text and every field's name marked; plane 15 becomes U+FFFD."""
        if isinstance(value, str):
            text = _PRIVATE.sub("\ufffd", well_formed(value)).translate(self.marks)
            return self.words.sub(lambda found: MARK.join(found[0]), text) if self.words else text
        if isinstance(value, Mapping):
            return {self.mark(str(name)): self.mark(item) for name, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list | tuple) else value

    def unmark(self, text: str) -> str:
        """A piece between control tokens as it is meant to be read."""
        return text.translate(self.unmarks)


def guard(controls: Iterable[str]) -> Guard:
    """The guard against these control tokens.

    A token is broken by a mark after each character that opens one: so it is too where a template puts it
    together from two texts, or changes its case.
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
    """Whether a prompt holds its tools. Raises ConfigError where it is the same `without` them, or escapes them."""
    fix = "choose a task that writes its tools into the question, such as tools in place of tools:json"
    if text == without:
        raise ConfigError("the model's chat template has no place for tools", where="task.name", fix=fix)
    if _ESCAPED.search(text):
        raise ConfigError("the model's chat template cannot show these tools", where="task.name", fix=fix)
