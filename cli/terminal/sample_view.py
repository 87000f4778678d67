"""One answer with its verdict in a few lines of a terminal; all of it is foreign text."""

from __future__ import annotations

import unicodedata

from rich.console import Console
from rich.text import Text
from sdpo_cli.terminal.progress import Sample

from sdpo_mlx.core.text import display

MOST_LINES = 15
CHARACTERS = 400  # of each text
SHARES = (2, 6, 6)  # at most so many lines of the problem, the answer, the feedback
NAME = 8
# Marks that join or colour what stands before them: terminals do not agree how wide the whole is.
_JOINING = ("Cf", "Me", "Mc", "Cn", "Co")


def sample_lines(console: Console, sample: Sample, width: int, room: int) -> list[Text]:
    """Problem, answer and feedback in at most `room` lines, each at least one; nothing where there is less room."""
    told = [("problem", sample.problem), ("answer", sample.answer), (sample.kind, sample.feedback)]
    named = width >= 3 * NAME
    inner = width - (NAME + 2 if named else 0)
    texts = [_wrapped(console, text, inner) for _, text in told]
    counts = _shared([len(lines) for lines in texts], room)
    found: list[Text] = []
    for (name, _), lines, count in zip(told, texts, counts, strict=True):
        for at, line in enumerate(_cut(lines, count, inner)):
            head = f"{steady(name)[:NAME] if at == 0 else '':<{NAME}}  " if named else ""
            found.append(Text.assemble((head, "dim"), line, no_wrap=True, overflow="crop"))
    return found


def steady(text: str) -> str:
    """Made inert, and without the characters of which terminals disagree how wide they are."""
    shown = unicodedata.normalize("NFC", display(text.strip(), CHARACTERS)).expandtabs(4)
    shown = shown.replace("\u2028", "\n").replace("\u2029", "\n")  # some terminals end a line there
    return "".join(c for c in shown if c == "\n" or not _unsteady(c))


def _unsteady(character: str) -> bool:
    code = ord(character)
    joined = unicodedata.category(character) in _JOINING
    # variation selectors, Hangul's loose vowels, flags' letters, skins
    return joined or any(
        first <= code <= last
        for first, last in ((0xFE00, 0xFE0F), (0x1160, 0x11FF), (0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF))
    )


def _wrapped(console: Console, text: str, width: int) -> list[Text]:
    lines = [Text(line).wrap(console, max(2, width)) for line in steady(text).split("\n")]
    return [line for wrapped in lines for line in wrapped]


def _shared(wanted: list[int], room: int) -> list[int]:
    """How many lines each text gets: one each, then one more in turn while there is room."""
    if room < len(wanted):
        return [0] * len(wanted)
    given = [1] * len(wanted)
    while sum(given) < room:
        open_ = [at for at, most in enumerate(SHARES) if given[at] < min(most, wanted[at])]
        if not open_:
            break
        given[min(open_, key=lambda at: given[at])] += 1
    return given


def _cut(lines: list[Text], count: int, width: int) -> list[Text]:
    """The first lines; an ellipsis at the end of the last one where there were more."""
    kept = [line.copy() for line in lines[:count]]
    if kept and len(lines) > count:
        kept[-1].truncate(max(1, width - 1), overflow="crop")
        kept[-1].append("…")
    return kept
