"""Atomic and durable writes: a file is complete or unchanged, and on the drive once a call returns."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from sdpo_mlx.core.errors import StorageError

P = ParamSpec("P")
R = TypeVar("R")

_CHECK = "check the folder's permissions and its disk"
_FULL = "free some space and run the same command again"
_FIXES: Mapping[int, str] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EISDIR: "give the path of a file, not of a folder",
    errno.ENOTDIR: "a part of the path is a file; give another path",
    errno.ELOOP: "a link points to itself; give another path",
}


def cache_home() -> Path:
    """Return `$SDPO_HOME`, or the platform's cache folder; it may not exist yet."""
    if chosen := os.environ.get("SDPO_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sdpo"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdpo"


def trouble(error: OSError, path: Path | str, doing: str = "write") -> StorageError:
    """Return the StorageError for an OSError about `path`."""
    if isinstance(error, StorageError):
        return error
    fix = _FIXES.get(error.errno or 0, _CHECK)
    return StorageError(f"cannot {doing}: {error.strerror or error}", where=str(path), fix=fix)


def sync(descriptor: int) -> None:
    """Wait until the drive has stored the data."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:  # on macOS fsync does not flush the drive's cache
        with suppress(OSError):  # a network or other file system without it
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that holds, or will hold, a folder."""
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(existing).free


def check_free(folder: Path, size: float, what: str) -> None:
    """Raise StorageError if `size` bytes do not fit on the disk of a folder."""
    free = free_bytes(folder)
    if size > free:
        need = f"{what} needs {size / 2**30:.1f} GB, but {free / 2**30:.1f} GB are free"
        raise StorageError(need, where=str(folder), fix="free some space, or use a smaller model")


def sync_folder(folder: Path) -> None:
    """Make renames and new names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Write every byte; `os.write` may write only a part on a nearly full disk."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def put(path: Path, content: bytes) -> None:
    """Write and fsync one new file in place; for folders that are renamed when complete."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(descriptor, content)
        sync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically: a reader or a kill sees the old content or the new, never a part.

    Raises StorageError; the old file is unchanged then.
    """
    if not path.name:
        raise StorageError("the path names no file", where=str(path), fix="give a file name")
    temporary = path.with_name(f".{path.name}.part")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            # A device or a pipe: renaming a file over it, as root, would take it from everybody.
            path.write_bytes(content)
            return
        put(temporary, content)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # only the first error is reported
            temporary.unlink(missing_ok=True)
        raise trouble(error, path) from error


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 file atomically; lone surrogates become `?`, line ends are kept."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def digest(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, without its content in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """Convert a value for strict JSON: numpy to Python, non-finite numbers to null, tuples and sets to lists."""
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def json_line(record: Mapping[str, Any]) -> bytes:
    """Return one JSON object and a line feed; ASCII, so that surrogates and control characters are escaped."""
    return (json.dumps(plain(record), allow_nan=False) + "\n").encode("ascii")


def guarded(path: Path, action: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `action`; an OSError becomes a StorageError about `path`."""
    try:
        return action(*args, **kwargs)
    except OSError as error:
        reading = getattr(action, "__name__", "").startswith("read")
        raise trouble(error, path, "read" if reading else "write") from error
