"""A run's adapter and card on a model hub, private unless said otherwise; nothing else of the run leaves."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.runs.folder import RunFolder

SENT = (
    "adapters.safetensors",
    "adapter_config.json",
    "README.md",
)  # no rollouts, no settings with paths of this machine


_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Parcel:
    """What would be sent, and where to."""

    repository: str
    files: tuple[str, ...]
    size: int


def parcel(run: Path, repository: str) -> Parcel:
    """What a push would send; raises StorageError without an adapter, ConfigError for a name that is none."""
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{repository!r} is no repository", where="REPO", fix="write OWNER/NAME")
    RunFolder(run).load_adapter()
    files = tuple(name for name in SENT if (run / name).is_file())
    return Parcel(repository, files, sum((run / name).stat().st_size for name in files))


def push(run: Path, sending: Parcel, *, public: bool = False) -> str:
    """Send it and return the address; raises StorageError where the hub refuses or cannot be reached."""
    from huggingface_hub import HfApi

    hub = HfApi(library_name="sdpo-mlx")
    try:
        made = hub.create_repo(sending.repository, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=sending.repository,
            folder_path=run,
            allow_patterns=list(sending.files),
            commit_message=f"Add the adapter of {run.resolve().name}",
        )
    except Exception as error:  # the client's own, and those of its HTTP library, which it changes
        said = " ".join(str(error).split())[:200]
        fix = "log in with `hf auth login`, and check the name and the network"
        raise StorageError(f"the hub did not take it: {said}", where=sending.repository, fix=fix) from error
    return str(made)


def described(sending: Parcel) -> str:
    """One line for whoever is asked."""
    return f"{', '.join(sending.files)} ({sending.size / 2**20:.1f} MiB) to {json.dumps(sending.repository)}"
