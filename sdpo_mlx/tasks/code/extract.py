"""Find the program in a model's answer."""

from __future__ import annotations

import re
import textwrap

_FENCE = re.compile(r"^\s*(`{3,})\s*([\w+.-]*)\s*$")
_PYTHON = ("python", "py", "python3")
_THINKING_END = "</think>"


def extract_code(text: str) -> str | None:
    """Return the last complete fenced block marked as Python, otherwise the last unmarked one; None if there is none.

    Text before the end of the thinking is not part of the answer; with unfinished thinking there is no answer.
    """
    if _THINKING_END in text:
        text = text.rpartition(_THINKING_END)[2]
    elif text.lstrip().startswith("<think>"):
        return None
    found: dict[bool, str] = {}  # the last block that is marked as Python, and the last unmarked one
    fence, language, start = "", "", 0
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):  # line by line, in linear time
        match = _FENCE.match(line)
        if match is None:
            continue
        if not fence:
            fence, language, start = match[1], match[2].lower(), number + 1
        elif not match[2] and len(match[1]) >= len(fence):
            if language in ("", *_PYTHON):
                found[language != ""] = textwrap.dedent("".join(lines[start:number]))
            fence = ""
    return found.get(True, found.get(False))
