"""Push a run's adapter and model card to the Hugging Face Hub, private by default; no other file is uploaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.models import adapter_folder
from sdpo_mlx.runs.folder import RunFolder

UPLOADED = ("adapters.safetensors", "adapter_config.json", "README.md")  # no rollouts, no settings with local paths
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Upload:
    """The files of an upload, their total size in bytes, the repository, and what is odd about the adapter."""

    repository: str
    files: tuple[str, ...]
    size: int
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line to confirm."""
        return f"{', '.join(self.files)} ({self.size / 2**20:.1f} MiB) to {json.dumps(self.repository)}"


def plan_upload(run: Path, repository: str) -> Upload:
    """Return what `push` would upload; raises StorageError without an adapter, ConfigError for an invalid name."""
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{repository!r} is not a repository name", where="REPO", fix="write OWNER/NAME")
    warnings = adapter_folder.warnings(RunFolder(run).load_adapter()[0])
    files = tuple(name for name in UPLOADED if (run / name).is_file())
    return Upload(repository, files, sum((run / name).stat().st_size for name in files), warnings)


def push(run: Path, upload: Upload, *, public: bool = False) -> str:
    """Upload and return the address; raises StorageError if the hub refuses or cannot be reached."""
    from huggingface_hub import HfApi

    hub = HfApi(library_name="sdpo-mlx")
    try:
        created = hub.create_repo(upload.repository, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=upload.repository,
            folder_path=run,
            allow_patterns=list(upload.files),
            commit_message=f"Add the adapter of {run.resolve().name}",
        )
    except Exception as error:  # the client's own, and those of its HTTP library, which differs between versions
        cause = " ".join(str(error).split())[:200]
        fix = "log in with `hf auth login`, and check the name and the network"
        raise StorageError(f"the upload failed: {cause}", where=upload.repository, fix=fix) from error
    return str(created)
