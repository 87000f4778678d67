"""Folders that live as long as the test process: what is made once and used by many tests."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

PREFIX = "test-cache-"


@cache
def _root() -> Path:
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def new_folder(name: str) -> Path:
    """Return a new empty folder, removed when the process ends."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_root()))
