"""What was found out about this machine and holds until something that it depends on changes; in the cache folder.

A file that cannot be read or written is none: then the question is asked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.core.storage import cache_home, digest, json_line, write_bytes


def read_cached(kind: str, depends_on: Sequence[str]) -> dict[str, Any]:
    """Return what is cached for exactly these texts; empty if nothing is, or if the file is another user's."""
    try:
        file = _file(kind, depends_on)
        found = json.loads(file.read_text("utf-8")) if file.stat().st_uid == os.getuid() else {}
    except (OSError, ValueError, RecursionError, RuntimeError):  # RuntimeError: a user without a home folder
        return {}
    return found if isinstance(found, dict) else {}


def write_cached(kind: str, depends_on: Sequence[str], found: Mapping[str, Any]) -> None:
    """Keep what was found, if the cache folder can be written."""
    try:
        file = _file(kind, depends_on)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, json_line(found))
    except (OSError, StorageError, RuntimeError):
        pass


def _file(kind: str, depends_on: Sequence[str]) -> Path:
    return cache_home() / kind / f"{digest(json.dumps(list(depends_on)).encode())}.json"
