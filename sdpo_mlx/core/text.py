"""Clean, shorten and display text from models, datasets and graders; it is always data, never markup.

Also the slots of a teacher template, so that the configuration can check one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

from sdpo_mlx.core.markdown import quoted_spans, span_at

FEEDBACK_LIMIT = 20_000  # characters; more than fits into a teacher prompt of 10,240 tokens beside its question
THINKING = "<think>", "</think>"
TEACHER_SLOTS = ("problem", "demonstration", "attempt", "feedback")

_SLOT = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_CUT = "\n[... {} characters cut ...]\n"
_REPLACEMENT = "\ufffd"

_SURROGATES = re.compile("[\ud800-\udfff]")
# Whole sequences (colors, cursor moves, titles, links, device strings), then single characters that are left.
# A body ends at the next opener, so that many unclosed sequences take linear time.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
# A beginning that may become one of these, or a line end, when more text follows.
_BEGUN = re.compile(
    r"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*\x1b?"
    r"|\x1b[ -/]*|\r)\Z"
)
_HELD = 4_096  # characters of an unclosed sequence, after which it is treated as text
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: str, limit: int | None = FEEDBACK_LIMIT) -> str:
    """Make feedback safe for a prompt: valid Unicode, plain lines, at most `limit` characters.

    Escape sequences, control characters (except newline and tab) and bidi controls are removed, line ends become
    newlines, lone surrogates become U+FFFD. A cut keeps head and tail and states how much is missing.
    """
    text = text.replace("\r\n", "\n")
    text = _CONTROLS.sub("", _ESCAPES.sub("", text).replace("\r", "\n"))
    text = well_formed(_BIDI.sub("", text))
    return text if limit is None else shorten_middle(text, limit)


def display(text: str, limit: int = 2_000) -> str:
    """Make text safe for a terminal, where no character may move the cursor or hide anything."""
    return clean(text, limit)


class Screen:
    """`display` for streamed text: a possibly incomplete sequence is kept until the next piece."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return the text that can be displayed now."""
        text = self._held + piece
        begun = _BEGUN.search(text)
        cut = begun.start() if begun and len(text) - begun.start() <= _HELD else len(text)
        self._held = text[cut:]
        return clean(text[:cut], None)

    def rest(self) -> str:
        """Return the text that was held back, at the end of the stream."""
        text, self._held = self._held, ""
        return clean(text, None)


def well_formed(text: str) -> str:
    """Replace lone surrogates, which no tokenizer and no file accepts, by U+FFFD."""
    return _SURROGATES.sub(_REPLACEMENT, text)


def shorten_middle(text: str, limit: int) -> str:
    """Shorten to at most `limit` characters: head and tail in equal parts, with a notice of the cut between them.

    If the limit is too small for the notice, only the head is left.
    """
    if len(text) <= limit:
        return text
    notice = _CUT.replace("{}", str(len(text)))  # as long as the final notice, or one digit longer
    kept = limit - len(notice)
    if kept < 2:
        return text[: max(limit, 0)]
    head, tail = text[: kept - kept // 2], text[len(text) - kept // 2 :]
    return head + _CUT.replace("{}", str(len(text) - kept)) + tail


def strip_thinking(text: str, start: str = THINKING[0], end: str = THINKING[1]) -> str:
    """Return the answer without thinking: closed blocks are removed, an unclosed one up to the end of the text.

    An `end` without a `start` closes thinking that the prompt opened: all text before it is removed. A mark that is
    quoted is text: one inside a string or a comment of a fenced program, or between two backticks. The end of thinking
    that the answer itself opened counts there too if it begins a line: thinking may break off inside of a program.
    """
    marks = list(_marks(start, end).finditer(text))
    spans = quoted_spans(text) if marks else []
    kept, position, thinking = list[str](), 0, False
    for mark in marks:
        at, behind = mark.span("mark")
        quoted = text[at - 1 : behind + 1] == f"`{mark['mark']}`" or span_at(at, spans) is not None
        if quoted and not (thinking and mark["line"] is not None):
            continue
        if mark["mark"] == end and not thinking:
            kept.clear()
        elif not thinking:
            kept.append(text[position:at])
        thinking, position = mark["mark"] == start, behind
    return "".join([*kept, *([] if thinking else [text[position:]])]).strip()


@cache
def _marks(start: str, end: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<line>^[ \t]*)?(?P<mark>{re.escape(start)}|{re.escape(end)})", re.MULTILINE)


def check_template(template: str) -> None:
    """Check a teacher template; raises ValueError for an unknown slot, or without the question or any help."""
    found = _SLOT.findall(template)
    unknown = [name for name in found if name not in TEACHER_SLOTS]
    known = " ".join(f"{{{name}}}" for name in TEACHER_SLOTS)
    if unknown:
        raise ValueError(f"unknown slot {{{unknown[0]}}} in the teacher template; there are {known}")
    if "problem" not in found:
        raise ValueError("the teacher template has no {problem}, so the question would be lost")
    if not {"demonstration", "feedback"} & set(found):
        raise ValueError("the teacher template has neither {demonstration} nor {feedback}, so it would teach nothing")


def fill_template(template: str, values: Mapping[str, str | None]) -> str:
    """Fill the slots of a template, of which each paragraph (text between blank lines) is a part; see `fill_parts`."""
    return fill_parts(template.split("\n\n"), values, "\n\n")


def fill_parts(parts: Sequence[str], values: Mapping[str, str | None], separator: str = "") -> str:
    """Fill the slots once, from left to right; filled-in text is never parsed as a template.

    A part whose slots all have no value (None) is left out; otherwise a slot without a value becomes empty. All other
    braces are kept.
    """
    kept = []
    for part in parts:
        slots = _SLOT.findall(part)
        if not slots or any(values.get(name) is not None for name in slots):
            kept.append(part)
    return _SLOT.sub(lambda slot: values.get(slot[1]) or "", separator.join(kept))
