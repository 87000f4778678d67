"""Under which licence a model lies here, as far as its files say."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST = 60  # characters to show
MOST_CARD = 1 << 16  # bytes
_FRONT = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_LINE = re.compile(r"^(license(?:_name|_link)?):[ \t]*(\S.*)$", re.MULTILINE)


def of_folder(folder: Path) -> str:
    """What the model card's front matter names; blank where there is none."""
    named = terms(folder)
    plain = named.get("license", "")
    return shown(named.get("license_name", plain) if plain in ("", "other") else plain)


def terms(folder: Path) -> dict[str, str]:
    """The front matter's own lines about the licence: `license`, and for one of its own name and link."""
    try:
        with (folder / "README.md").open("rb") as file:
            card = file.read(MOST_CARD).decode("utf-8", errors="replace")
    except OSError:
        return {}
    front = _FRONT.match(card.replace("\r\n", "\n"))
    return {key: value.strip().strip("\"'") for key, value in _LINE.findall(front[1])} if front else {}


def shown(text: str) -> str:
    """One short line."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
