"""Fenced code blocks of an answer, by the rules of CommonMark (read by markdown-it-py).

An opening fence is at least three backticks or tildes, indented by at most three spaces; it ends at the next fence of
the same characters, at least as long and without a word behind it, or at the end of the text. A fence that is indented
by four spaces or more is neither, so a program's docstring may hold one. Fences in lists and quotes count. Models
write two things that CommonMark does not have, which are read as they mean them:

- a closing fence behind the last line of code (`return a + b` and three backticks), outside of strings and of
  lines that are only a comment;
- a list item that ends inside of its fence, because the code is indented less: then lists and quotes do not count.

HTML and indented code hold no blocks. The time is linear in the length of the text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_NESTED = 8  # levels of lists and quotes; what is deeper holds no blocks, and a hostile answer costs no more for it
_REPAIRS = 16  # closing fences behind code that are looked for in one answer: each one reads the text again
_LINE_END = re.compile(r"\r\n?|\n")
_WORD = r"[A-Za-z][\w+./-]*(?:\#(?!\w))?"
_IN_BRACES = re.compile(rf"(?:[^}}]*?\s)?\.({_WORD})|\s*code(?:-block|-cell)?\}}\s*({_WORD})|\s*({_WORD})")
_FIRST_WORD = re.compile(rf"[\s.\"'\[(]*(?:lang(?:uage)?[-:=][\"']?)?({_WORD})(?!\w*=[\"'A-Za-z])")
# Closed or not, so that no character is looked at twice; what is not closed is no string.
_QUOTED = re.compile(
    r'"""(?>\\.?|[^\\])*?(?P<long>"""|\Z)|\'\'\'(?>\\.?|[^\\])*?(?P<long2>\'\'\'|\Z)'
    r'|"(?>\\.?|[^"\\\n])*(?P<short>"?)|\'(?>\\.?|[^\'\\\n])*(?P<short2>\'?)|\#[^\n]*(?P<comment>)',
    re.DOTALL,
)
_GLUED = re.compile(r"^[^\n`]*[^\s`][ \t]*(`{3,})[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class CodeBlock:
    """One fenced block.

    `language` is its first word in small letters, blank if it has none; `first` and `end` are the line of the opening
    fence and the one behind the block, from 0. One that is not `closed` goes on to the end of the text.
    """

    language: str
    text: str
    first: int
    end: int
    closed: bool


def code_blocks(text: str) -> list[CodeBlock]:
    """Return the fenced blocks of a text in order; the last may be open."""
    return _repaired(text)[1]


def without_fences(text: str) -> str:
    """Return the text without the lines of its fences."""
    lines, blocks = _repaired(text)
    fences = {block.first for block in blocks} | {block.end - 1 for block in blocks if block.closed}
    return "\n".join(line for number, line in enumerate(lines) if number not in fences) if fences else text


def quoted_spans(text: str) -> list[tuple[int, int]]:
    """Return where the strings and comments inside fenced blocks begin and end, in order."""
    lines = _LINE_END.split(text)
    starts = [0, *(match.end() for match in _LINE_END.finditer(text)), len(text)]
    return [
        (starts[block.first] + begin, starts[block.first] + end)
        for block in _parsed(lines)
        for begin, end in _quoted(text[starts[block.first] : starts[block.end]])
    ]


def span_at(place: int, spans: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the one of these spans, which are in order, in which a place lies."""
    index = bisect_right(spans, place, key=lambda span: span[0]) - 1
    return spans[index] if index >= 0 and place < spans[index][1] else None


@cache
def _parser(*, containers: bool) -> MarkdownIt:
    """Return a parser of blocks alone, for which HTML is text: answers put their blocks between tags of their own."""
    from markdown_it import MarkdownIt  # an import of 20 ms, which most commands do not need

    parser = MarkdownIt("commonmark", {"maxNesting": _NESTED})
    parser.core.ruler.enableOnly(["normalize", "block"])
    parser.block.ruler.enableOnly(["code", "fence", "hr", "paragraph", *(("blockquote", "list") if containers else ())])
    return parser


def _repaired(text: str) -> tuple[list[str], list[CodeBlock]]:
    """Return lines and blocks of a text, in which a closing fence behind code has a line of its own."""
    lines = _LINE_END.split(text)
    blocks = _parsed(lines)
    for _ in range(_REPAIRS):
        glued = next(filter(None, map(_glued_fence, blocks)), None)
        if glued is None:
            break
        number, length = glued
        line = lines[number].rstrip(" \t")
        lines[number : number + 1] = [line[:-length], line[-length:]]
        blocks = _parsed(lines)
    return lines, blocks


def _parsed(lines: list[str]) -> list[CodeBlock]:
    if not any("```" in line or "~~~" in line for line in lines):
        return []
    blocks = _fences(lines, containers=True)
    cut_off = any(not block.closed and block.end < len(lines) for block in blocks)
    return _fences(lines, containers=False) if cut_off else blocks


def _fences(lines: list[str], *, containers: bool) -> list[CodeBlock]:
    blocks = []
    for token in _parser(containers=containers).parse("\n".join(lines) + "\n"):
        if token.type == "fence" and token.map is not None:
            first, end = token.map
            closed = token.content.count("\n") == end - first - 2
            # CommonMark takes the fence's own indentation off each line that has it, which can bend a program.
            own = token.content if token.level else "".join(f"{line}\n" for line in lines[first + 1 : end - closed])
            blocks.append(CodeBlock(_language(token.info), own, first, end, closed))
    return blocks


def _language(info: str) -> str:
    """Return the language that an info string names: `python title="a"`, `python:a.py`, `{.python}`, `Python3.11`."""
    info = info.strip()
    match = _IN_BRACES.match(info, 1) if info.startswith("{") else _FIRST_WORD.match(info)
    return next(filter(None, match.groups()), "").lower() if match else ""


def _quoted(code: str) -> Iterator[tuple[int, int]]:
    """Yield where strings and comments of a program begin and end; a string that is not closed is none."""
    for match in _QUOTED.finditer(code):
        if match.lastgroup == "comment" or match[match.lastgroup or 0]:
            yield match.span()


def _glued_fence(block: CodeBlock) -> tuple[int, int] | None:
    """Return the line of the first closing fence that stands behind code, and the fence's length."""
    if not _GLUED.search(block.text):
        return None
    spans = list(_quoted(block.text))
    for match in _GLUED.finditer(block.text):
        span = span_at(match.start(1), spans)
        behind_comment = span is not None and block.text[span[0]] == "#" and block.text[match.start() : span[0]].strip()
        if span is None or behind_comment:
            return block.first + 1 + block.text.count("\n", 0, match.start(1)), len(match[1])
    return None
