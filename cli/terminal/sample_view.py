"""One rollout with its feedback in a few lines of a terminal; all of it is untrusted text."""

from __future__ import annotations

import re
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
# More of them: variation selectors, Hangul medial vowels, regional indicators, skin tones.
_JOINED = re.compile("[\ufe00-\ufe0f\u1160-\u11ff\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")


def sample_lines(console: Console, sample: Sample, width: int, room: int) -> list[Text]:
    """Problem, answer and feedback in at most `room` lines, at least one each; empty if there is less room."""
    parts = [("problem", sample.problem), ("answer", sample.answer), (sample.kind, sample.feedback)]
    labelled = width >= 3 * LABEL_WIDTH
    inner = width - (LABEL_WIDTH + 2 if labelled else 0)
    texts = [
        [line for part in steady(text).split("\n") for line in Text(part).wrap(console, max(2, inner))]
        for _, text in parts
    ]
    counts = _allot([len(lines) for lines in texts], room)
    found: list[Text] = []
    for (name, _), lines, count in zip(parts, texts, counts, strict=True):
        kept = [line.copy() for line in lines[:count]]
        if kept and len(lines) > count:
            kept[-1].truncate(max(1, inner - 1), overflow="crop")
            kept[-1].append("…")
        for at, line in enumerate(kept):
            head = f"{steady(name)[:LABEL_WIDTH] if at == 0 else '':<{LABEL_WIDTH}}  " if labelled else ""
            found.append(Text.assemble((head, "dim"), line, no_wrap=True, overflow="crop"))
    return found


def steady(text: str) -> str:
    """Escape a text and drop the characters whose width differs between terminals."""
    shown = unicodedata.normalize("NFC", display(text.strip(), CHARACTERS)).expandtabs(4)
    shown = shown.replace("\u2028", "\n").replace("\u2029", "\n")  # some terminals end a line there
    kept = (c for c in _JOINED.sub("", shown) if unicodedata.category(c) not in _JOINING)
    # Of the spaces only U+0020 is printable: a terminal may show U+00A0 and others in its own way.
    return "".join(c if c == "\n" or c.isprintable() else " " for c in kept)


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
