"""Git-LFS pointers: the short text that `git clone` leaves in place of a large file when git-lfs is not installed."""

from __future__ import annotations

from pathlib import Path

_FIRST_LINES = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_HELD = (".safetensors", ".json", ".model", ".jinja", ".gguf", ".bin")  # what a model or an adapter needs
_LONGEST = 1024  # bytes, as in the specification of git-lfs
WHAT = "is a pointer of git-LFS, not the file itself"
FIX = "run `git lfs install`, then `git lfs pull` in this folder"


def is_pointer(path: Path) -> bool:
    """Return whether a file holds nothing but a pointer; false for what cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size >= _LONGEST:
            return False
        return path.read_bytes().startswith(_FIRST_LINES)
    except OSError:
        return False


def pointer_in(folder: Path) -> Path | None:
    """Return the first file of a model's or adapter's folder that is a pointer, None if there is none.

    Pictures and other files that are not loaded may be pointers; subfolders are not searched.
    """
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((file for file in files if file.suffix.lower() in _HELD and is_pointer(file)), None)
