"""What an answer is made of, and how a text is parted outside of its brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sdpo_mlx.tasks.math.normalize import UnreadableError, closing
from sdpo_mlx.tasks.math.units import Tail

Kind = Literal["value", "word", "list", "set", "group", "equation", "solutions", "congruence", "ratio", "based"]
OPENING, CLOSING = "([{", ")]}"
_NO_TAIL = Tail()


@dataclass(frozen=True)
class Answer:
    """An answer or a part of one."""

    kind: Kind
    text: str = ""  # LaTeX of a value, sides of an equation, words of a word
    parts: tuple[Answer, ...] = ()
    mark: str = ""  # brackets of a group, the sign between parts of a list, the base, the modulus
    name: str = ""  # `x` of `x = 5`, a point's letter
    tail: Tail = _NO_TAIL
    rough: bool = False  # stated with \approx
    left: str = ""  # left side of an equation without a lone name


def split(text: str, sign: re.Pattern[str]) -> list[tuple[str, str]]:
    """Pieces between signs that stand outside of all brackets, each with the sign before it."""
    pieces, before, start = [], "", 0
    free = outside(text)
    for found in sign.finditer(text):
        if free[found.start()]:
            pieces.append((before, text[start : found.start()].strip()))
            before, start = found[0].strip(), found.end()
    return [*pieces, (before, text[start:].strip())]


def outside(text: str) -> list[bool]:
    """For each place whether it is outside of all brackets; `]0,5[` and a bar close nothing."""
    level, found, skip = 0, [], False
    for at, sign in enumerate(text):
        opens, closes = sign in OPENING, sign in CLOSING
        if sign == "\\":
            opens, closes = text.startswith("\\begin{", at), text.startswith("\\end{", at)
        if skip:
            opens, closes, skip = sign == "{", sign == "}", False
        else:
            skip = sign == "\\" and text[at + 1 : at + 2] in ("\\", "{", "}", "|")
        level -= closes
        found.append(level <= 0)
        level += opens
    return found


def letters(text: str) -> list[str]:
    """Unknowns in LaTeX: letters that are neither constants nor parts of a command or of a word."""
    bare = without_commands(text)
    greek = re.findall(
        r"\\(alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|omega|Delta|Omega)(?![A-Za-z])", text
    )
    return sorted(set(re.findall(r"[A-Za-z]", bare)) - {"e", "i"} | set(greek))


def without_commands(text: str) -> str:
    """Return LaTeX without its commands and words."""
    return re.sub(r"\\(?:text|begin|end|mathbb)\{[^{}]*\}|\\[A-Za-z]+", " ", text)


def tight(text: str) -> str:
    """Return a text without blanks."""
    return text.replace(" ", "")


def bare(text: str) -> str:
    """Without braces around the whole."""
    while text.startswith("{") and closing(text, 0) == len(text) - 1 and "," not in text:
        text = text[1:-1].strip()
    if not text:
        raise UnreadableError("nothing is left to read")
    return text
