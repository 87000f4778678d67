"""The license and the original of a model, read from the front matter of its model card (README.md)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

MAX_SHOWN = 60  # characters
MAX_CARD = 1 << 16  # bytes
_FRONT_MATTER = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_KEYS = ("license", "license_name", "license_link")


def of_folder(folder: Path) -> str:
    """Return the license's name as one short line; blank if the card names none."""
    found = terms(folder)
    plain = found.get("license", "")
    return shown(found.get("license_name", plain) if plain in ("", "other") else plain)


def terms(folder: Path) -> dict[str, str]:
    """Return the card's `license`, `license_name` and `license_link`, those that it has."""
    found = _front_matter(folder)
    return {key: " ".join(found[key].split()) for key in _KEYS if isinstance(found.get(key), str)}


def base_model(folder: Path) -> str:
    """Return the card's `base_model`, blank if it names none or several."""
    found = _front_matter(folder).get("base_model")
    only = found[0] if isinstance(found, list) and len(found) == 1 else found
    return only.strip() if isinstance(only, str) else ""


def _front_matter(folder: Path) -> dict[Any, Any]:
    """Return the card's front matter, empty if there is none or it is damaged."""
    try:
        with (folder / "README.md").open("rb") as file:
            card = file.read(MAX_CARD).decode("utf-8", errors="replace")
        front = _FRONT_MATTER.match(card.replace("\r\n", "\n"))
        content = yaml.safe_load(front[1]) if front else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def shown(text: str) -> str:
    """Return the text as one short line."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[: MAX_SHOWN - 3]}..."
