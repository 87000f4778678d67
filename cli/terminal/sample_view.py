"""One rollout with its feedback in a few lines of a terminal; all of it is untrusted text."""

from __future__ import annotations

import unicodedata

from rich.console import Console
from rich.text import Text
from sdpo_cli.terminal.progress import Sample

from sdpo_mlx.core.text import display

MOST_LINES = 15
CHARACTERS = 400  # of each text
LINE_LIMITS = (2, 6, 6)  # for the problem, the answer, the feedback
LABEL_WIDTH = 8
# Marks that combine with the character before them: terminals disagree about the width of the result.
_JOINING = ("Cf", "Me", "Mc", "Cn", "Co")


def sample_lines(console: Console, sample: Sample, width: int, room: int) -> list[Text]:
    """Problem, answer and feedback in at most `room` lines, at least one each; empty if there is less room."""
    parts = [("problem", sample.problem), ("answer", sample.answer), (sample.kind, sample.feedback)]
    labelled = width >= 3 * LABEL_WIDTH
    inner = width - (LABEL_WIDTH + 2 if labelled else 0)
    texts = [_wrapped(console, text, inner) for _, text in parts]
    counts = _allot([len(lines) for lines in texts], room)
    found: list[Text] = []
    for (name, _), lines, count in zip(parts, texts, counts, strict=True):
        for at, line in enumerate(_cut(lines, count, inner)):
            head = f"{steady(name)[:LABEL_WIDTH] if at == 0 else '':<{LABEL_WIDTH}}  " if labelled else ""
            found.append(Text.assemble((head, "dim"), line, no_wrap=True, overflow="crop"))
    return found


def steady(text: str) -> str:
    """Escape a text and drop the characters whose width differs between terminals."""
    shown = unicodedata.normalize("NFC", display(text.strip(), CHARACTERS)).expandtabs(4)
    shown = shown.replace("\u2028", "\n").replace("\u2029", "\n")  # some terminals end a line there
    # Of the spaces only U+0020 is printable: a terminal may show U+00A0 and others in its own way.
    return "".join(c if c == "\n" or c.isprintable() else " " for c in shown if c == "\n" or not _unsteady(c))


def _unsteady(character: str) -> bool:
    code = ord(character)
    joined = unicodedata.category(character) in _JOINING
    # variation selectors, Hangul medial vowels, regional indicators, skin tones
    return joined or any(
        first <= code <= last
        for first, last in ((0xFE00, 0xFE0F), (0x1160, 0x11FF), (0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF))
    )


def _wrapped(console: Console, text: str, width: int) -> list[Text]:
    lines = [Text(line).wrap(console, max(2, width)) for line in steady(text).split("\n")]
    return [line for wrapped in lines for line in wrapped]


def _allot(lengths: list[int], room: int) -> list[int]:
    """Return the number of lines for each text: one each, then one more in turn while there is room."""
    if room < len(lengths):
        return [0] * len(lengths)
    given = [1] * len(lengths)
    while sum(given) < room:
        open_ = [at for at, most in enumerate(LINE_LIMITS) if given[at] < min(most, lengths[at])]
        if not open_:
            break
        given[min(open_, key=lambda at: given[at])] += 1
    return given


def _cut(lines: list[Text], count: int, width: int) -> list[Text]:
    """Return the first lines, with an ellipsis at the end if there are more."""
    kept = [line.copy() for line in lines[:count]]
    if kept and len(lines) > count:
        kept[-1].truncate(max(1, width - 1), overflow="crop")
        kept[-1].append("…")
    return kept
