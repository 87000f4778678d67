"""Find the program in a model's answer."""

from __future__ import annotations

import re
import textwrap

from sdpo_mlx.core.markdown import code_blocks
from sdpo_mlx.core.text import strip_thinking

_FENCE_BEGUN = re.compile(r"\n[ \t]*`+\s*\Z")  # the answer ends inside of its closing fence, or that is too short
_PYTHON = re.compile(r"(?:i?python|py)[-\d.]*|[\w./-]*\.py")  # a language, or the name of a file


def extract_code(text: str, *, truncated: bool = False) -> str | None:
    """Return the last fenced block marked as Python, otherwise the last unmarked one; None if there is none.

    The thinking is no part of the answer (`strip_thinking`). A last block whose closing fence is missing counts, unless
    it is empty or the answer was `truncated`: then the last complete block is the program.
    """
    found: dict[bool, str] = {}  # the last block that is marked as Python, and the last unmarked one
    for block in code_blocks(strip_thinking(text)):
        python = _PYTHON.fullmatch(block.language) is not None
        usable = block.closed or (not truncated and block.text.strip())
        if usable and (python or not block.language):
            text = block.text if block.closed else _FENCE_BEGUN.sub("\n", block.text)
            found[python] = textwrap.dedent(text)
    return found.get(True, found.get(False))
