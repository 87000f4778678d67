"""The model hub's own cache: `models--<owner>--<name>/snapshots/<commit>/`, and which commit a branch stood at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Snapshot:
    """One repository at one commit; `current` where its main branch stood there when it was last asked."""

    repository: str
    commit: str
    path: Path
    current: bool


def root() -> Path:
    """`$HF_HUB_CACHE`, `$HF_HOME/hub`, or the folder that the hub's client takes without them."""
    if chosen := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(chosen).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


def snapshots() -> Iterator[Snapshot]:
    """Every commit of every model repository, by name."""
    try:
        folders = sorted(root().glob("models--*--*"))
    except OSError:
        return
    for folder in folders:
        owner, _, name = folder.name.removeprefix("models--").partition("--")
        yield from _of(folder, f"{owner}/{name}")


def snapshot(repository: str, revision: str = "main") -> Snapshot | None:
    """The repository at a branch, a tag or a commit, where it is here."""
    folder = root() / f"models--{repository.replace('/', '--')}"
    commit = _commit(folder, revision) or revision
    return next((each for each in _of(folder, repository) if each.commit == commit), None)


def _of(folder: Path, repository: str) -> Iterator[Snapshot]:
    current = _commit(folder, "main")
    try:
        found = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    except OSError:
        return
    for path in found:
        yield Snapshot(repository, path.name, path, path.name == current)


def _commit(folder: Path, revision: str) -> str:
    """The commit of a branch or tag, blank where there is none of this name."""
    if ".." in Path(revision).parts:
        return ""
    try:
        with (folder / "refs" / revision).open(encoding="ascii") as file:
            return file.read(100).strip()
    except (OSError, ValueError):
        return ""
