"""GGUF files that are used where they lie: imported once, kept by the hash of their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.core.storage import cache_home
from sdpo_mlx.models.gguf.header import read_header
from sdpo_mlx.models.gguf.reader import import_gguf


def folder_of(sha256: str) -> Path:
    """Where the import of the file of this hash lies, or would."""
    return cache_home() / "gguf" / sha256


def imported(file: Path, expected: str = "", doing: StartTask = no_tasks) -> tuple[Path, str]:
    """The folder of this GGUF's import, made now where it is not there yet, and the file's SHA-256.

    `expected` is the hash that its keeper knows the file by. Raises ConfigError, StorageError.
    """
    if trouble := read_header(file).trouble():
        raise ConfigError(trouble, where=str(file), fix="use another file; `sdpo models list` says which can be used")
    doing(f"checking {file.name}")
    sha256 = _hash_of(file)
    if expected and sha256 != expected:
        raise ConfigError("the file is not what its name says", where=str(file), fix="get the model again")
    folder = folder_of(sha256)
    if not (folder / "config.json").is_file():
        try:
            import_gguf(file, folder, doing=doing)
        except (ConfigError, StorageError):
            if not (folder / "config.json").is_file():  # another process may have been quicker
                raise
    return folder, sha256


def _hash_of(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(file), fix="check the file") from error
