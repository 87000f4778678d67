"""Finding the final answer in what a model wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sdpo_mlx.core.text import strip_thinking

LOOKED_AT = 50_000  # characters from the end; an answer stands there
LONGEST_ANSWER = 1_000

_PIECE = re.compile(r"\\(?:boxed|fbox)\s*(\{)?|\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"\\boxed\s+([^\s{}$]+)")
_MARKS = r"[ \t*_>`#]{0,8}"  # bounded, so that a flood of blanks or marks costs linear time
_LINE = re.compile(
    rf"^{_MARKS}(?:(?:so|thus|hence|therefore)?,? ?(?:the|my)? ?(?:final |correct )?answer(?: to [^:\n]{{1,60}}?)?"
    rf"{_MARKS}(?:\bis\b{_MARKS}:?|[:=]){_MARKS}\n{{0,2}}|####){_MARKS}(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_INSIDE = re.compile(r"\b(?:final |correct )?answer is:? +(.+)$", re.IGNORECASE | re.MULTILINE)
_HEADING = re.compile(
    r"^[ \t]{0,3}(?:#{1,6} |\*\*)[ *]{0,4}(?:the )?(?:final )?answer[ *:]{0,6}\n{1,2}[ \t*]{0,8}(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_PREFIX = re.compile(r"^(?:(?:the )?(?:final |correct )?answer(?: is)?:?\s{1,3})", re.IGNORECASE)
_SUFFIX = re.compile(r"\.?\s{1,3}I hope (?:it|this) is correct\.?$", re.IGNORECASE)
_MATH = re.compile(r"^(\$\$?)(?!\d[^$]*$)(.*?)\1|^\\\((.*?)\\\)|^\\\[(.*?)\\\]", re.DOTALL)

Where = Literal["box", "line"]


@dataclass(frozen=True)
class Found:
    """The final answer as it was written, where it was, and how many different ones stood there."""

    text: str
    where: Where
    others: int = 0


def find_answer(text: str) -> Found | None:
    """Return the last complete `\\boxed{...}`, else the last line such as `Answer: 42` or `#### 42`; None without any.

    Thinking is no part of the answer. Linear in the length; only the last 50,000 characters are looked at.
    """
    text = strip_thinking(text)[-LOOKED_AT:]
    boxes = [box for box in map(tidied, _boxes(text)) if box]
    if boxes:
        return Found(boxes[-1], "box", len(set(boxes)) - 1)
    lines: list[str] = []
    for pattern in (_LINE, _HEADING, _INSIDE):
        lines = lines or [line for line in (tidied(found[1]) for found in pattern.finditer(text)) if line]
    return Found(lines[-1], "line", len(set(lines)) - 1) if lines else None


def last_boxed(text: str) -> str | None:
    """Return the content of the last complete `\\boxed{...}` of a solution."""
    boxes = _boxes(text)
    return boxes[-1].strip() if boxes else None


def tidied(answer: str) -> str:
    """Return an answer without `the answer is`, dollar signs and bold marks around it, and the last full stop."""
    if heading := _HEADING.fullmatch(answer.strip()):
        answer = heading[1]
    answer = answer.strip().strip("*`").strip()
    answer = _SUFFIX.sub("", _PREFIX.sub("", answer))
    found = _MATH.match(answer)
    if found and not answer[found.end() :].strip(" .*"):
        answer = next(group for group in found.groups()[1:] if group is not None).strip()
    answer = answer.rstrip("*` ")
    if answer.endswith(".") and not answer.endswith(".."):
        answer = answer[:-1]
    inner = last_boxed(answer)
    return (inner if inner is not None else answer).strip().strip("*").strip()


def _boxes(text: str) -> list[str]:
    """Return contents of all complete outermost boxes in order of their ends, braces balanced, in one pass."""
    open_braces: list[int | None] = []  # where a box's content starts, None for any other brace
    boxes: list[str] = []
    nested: list[str] = []  # counts only where the box around it never ends
    inside = 0
    for piece in _PIECE.finditer(text):
        token = piece[0]
        if token == "{" or piece[1]:
            starts = piece.end() if piece[1] else None
            open_braces.append(starts)
            inside += starts is not None
        elif token == "}" and open_braces:
            start = open_braces.pop()
            inside -= start is not None
            if start is not None:
                if not inside:
                    boxes.append(text[start : piece.start()])
                elif piece.start() - start <= LONGEST_ANSWER:
                    nested.append(text[start : piece.start()])
    return boxes or nested or [found[1] for found in _BARE.finditer(text)]
