"""Checks of free disk space for runs and models, and of the size of the caches."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from sdpo_cli.diagnostics.finding import Finding

from sdpo_mlx.core.storage import cache_home
from sdpo_mlx.models import hub

MIN_FREE = 2 << 30  # bytes; a small model takes about one GB
NO_SPACE = 100 << 20  # bytes; a run fails soon
SECONDS = 0.5  # for measuring one cache
GB = 1 << 30


def runs() -> Iterator[Finding]:
    """The default folder of runs."""
    folder = Path.cwd() / "runs"
    here = nearest(folder)
    free, writable = shutil.disk_usage(here).free, os.access(here, os.W_OK)
    fix = "free some space, or use --out on another disk" if writable else "change to a writable folder"
    found = f"{free / GB:.1f} GB free at {folder}{'' if writable else ', not writable'}"
    facts = {"path": str(folder), "free_bytes": free, "writable": writable}
    yield Finding("disk", writable and free > MIN_FREE, found, fix, not writable or free < NO_SPACE, facts=facts)


def caches() -> Iterator[Finding]:
    """The caches of sdpo and the hub: path, size, free space."""
    yield _cache("cache", cache_home(), "set the environment variable SDPO_HOME to another folder")
    yield _cache("hub_cache", hub.root(), "set the environment variable HF_HOME to another folder")


def _cache(name: str, folder: Path, elsewhere: str) -> Finding:
    here = nearest(folder)
    free, writable = shutil.disk_usage(here).free, os.access(here, os.W_OK | os.X_OK)
    size, whole = folder_size(folder)
    facts = {"path": str(folder), "bytes": size, "whole": whole, "free_bytes": free, "writable": writable}
    used = f"{'' if whole else 'at least '}{size / GB:.2f} GB used" if folder.is_dir() else "not created yet"
    found = f"{folder}: {used}, {free / GB:.1f} GB free{'' if writable else ', not writable'}"
    fix = f"free some space, or {elsewhere}" if writable else elsewhere
    return Finding(name, writable and free > MIN_FREE, found, fix, facts=facts)


def nearest(folder: Path) -> Path:
    """Return the folder, or its closest parent that exists."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def folder_size(folder: Path, seconds: float = SECONDS) -> tuple[int, bool]:
    """Return the bytes of all files, without following links, and whether the time was enough to count them all."""
    until, waiting, total = time.monotonic() + seconds, [folder], 0
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if time.monotonic() > until:
                        return total, False
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # deleted meanwhile, or no permission
            continue
    return total, True
