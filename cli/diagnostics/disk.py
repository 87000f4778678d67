"""Room on the disk where runs and models go, and what lies in the caches; a walk ends when its time is over."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from sdpo_cli.diagnostics.finding import Finding

from sdpo_mlx.core.storage import cache_home
from sdpo_mlx.models import hub

LITTLE = 2 << 30  # bytes; a fetched small model with its import takes about one GB
NOTHING = 100 << 20  # bytes with which no run gets far
SECONDS = 0.5  # for walking through one cache
GB = 1 << 30


def runs() -> Iterator[Finding]:
    """Where `sdpo train` puts runs that are given no other place."""
    folder = Path.cwd() / "runs"
    here = nearest(folder)
    free, writable = shutil.disk_usage(here).free, os.access(here, os.W_OK)
    fix = "free some space, or name another place with --out" if writable else "go to a folder that you may write to"
    found = f"{free / GB:.1f} GB free at {folder}{'' if writable else ', which cannot be written'}"
    facts = {"path": str(folder), "free_bytes": free, "writable": writable}
    yield Finding("disk", writable and free > LITTLE, found, fix, not writable or free < NOTHING, facts=facts)


def caches() -> Iterator[Finding]:
    """Our own cache and the hub's: where, how large, how much room is left."""
    yield _cache("cache", cache_home(), "choose another folder with the environment variable SDPO_HOME")
    yield _cache("hub_cache", hub.root(), "choose another folder with the environment variable HF_HOME")


def _cache(name: str, folder: Path, elsewhere: str) -> Finding:
    here = nearest(folder)
    free, writable = shutil.disk_usage(here).free, os.access(here, os.W_OK | os.X_OK)
    size, whole = held(folder)
    facts = {"path": str(folder), "bytes": size, "whole": whole, "free_bytes": free, "writable": writable}
    holds = f"holds {'' if whole else 'at least '}{size / GB:.2f} GB" if folder.is_dir() else "not made yet"
    found = f"{folder}: {holds}, {free / GB:.1f} GB free{'' if writable else ', cannot be written'}"
    fix = f"free some space, or {elsewhere}" if writable else elsewhere
    return Finding(name, writable and free > LITTLE, found, fix, facts=facts)


def nearest(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def held(folder: Path, seconds: float = SECONDS) -> tuple[int, bool]:
    """Bytes of the files below, links not followed, and whether the walk came to its end in time."""
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
        except OSError:  # vanished or forbidden
            continue
    return total, True
