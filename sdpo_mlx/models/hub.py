"""Models of the Hugging Face hub: downloads, and what lies in the hub's own cache.

The cache is listed here, in `models--<owner>--<name>/snapshots/<commit>/`, and not by `huggingface_hub.scan_cache_dir`
(2.4): that takes 0.3 s to import, which shell completion would pay at every TAB, and leaves out a repository of which
one file is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.progress import MEGABYTE, ProgressCallback, StartTask, no_progress
from sdpo_mlx.models.safetensors_io import weight_files

# Nothing that runs code when it is loaded; README.md is the model card, which names the license.
ALLOWED = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "README.md")
CONFIGURATION = ("config.json", "tokenizer_config.json", "chat_template.jinja")  # a few kilobytes
ANSWER_SECONDS = 2.5
_FIX = "check the name and the network, or name a folder; `sdpo models list` shows what is here"
_CAUSES = {
    "RepositoryNotFoundError": "no such repository, or it is private",
    "GatedRepoError": "the repository asks you to accept its terms first",
    "RevisionNotFoundError": "no such revision",
    "HFValidationError": "that is not a repository's name",
}


class HubUnreachableError(ConfigError):
    """The hub does not answer, and the files are not cached."""


@dataclass(frozen=True)
class Snapshot:
    """One repository at one commit; `current` if its main branch was there when the hub was last asked."""

    repository: str
    commit: str
    path: Path
    current: bool


def root() -> Path:
    """Return the cache's folder: `$HF_HUB_CACHE`, `$HF_HOME/hub`, or the default of `huggingface_hub`."""
    if chosen := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(chosen).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


def snapshots() -> Iterator[Snapshot]:
    """Yield every cached commit of every model repository, by name."""
    try:
        found = sorted(path for path in root().glob("models--*--*/snapshots/*") if path.is_dir())
    except OSError:
        return
    for path in found:
        folder = path.parents[1]
        owner, _, name = folder.name.removeprefix("models--").partition("--")
        yield Snapshot(f"{owner}/{name}", path.name, path, path.name == _commit(folder, "main"))


def snapshot(target: str) -> Snapshot | None:
    """Return the cached files of `owner/name[@branch, tag or commit]`, None if there are none."""
    repository, _, revision = target.partition("@")
    folder = root() / f"models--{repository.replace('/', '--')}"
    commit = _commit(folder, revision or "main") or revision
    return next((each for each in snapshots() if (each.repository, each.commit) == (repository, commit)), None)


def download(name: str, target: str, start_task: StartTask) -> Path:
    """Return the folder of `owner/name[@revision]`, named by its commit; cached files are not downloaded again.

    Raises ConfigError if the hub cannot be reached or refuses.
    """
    from huggingface_hub import snapshot_download

    _refuse_silence(name, target)
    repository, _, revision = target.partition("@")
    bar = progress_bar(start_task(f"getting {target}, in MB"))
    try:
        folder = snapshot_download(
            repository, revision=revision or "main", allow_patterns=list(ALLOWED), tqdm_class=bar
        )
    except Exception as error:  # the client passes on its transport's errors too
        raise _error(name, target, error) from error
    return Path(folder)


def configuration_folder(name: str, target: str) -> Path:
    """Return the folder of a repository's configuration; if its weights are not cached, it alone is downloaded.

    Raises ConfigError. `snapshot_download` fails at once without a network, `hf_hub_download` (2.4) after 23 seconds.
    """
    from huggingface_hub import snapshot_download

    cached = snapshot(target)
    if cached is not None and (cached.path / "config.json").is_file() and weight_files(cached.path):
        return cached.path
    _refuse_silence(name, target)
    repository, _, revision = target.partition("@")
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision or "main",
                allow_patterns=list(CONFIGURATION),
                tqdm_class=progress_bar(no_progress),
            )
        )
    except Exception as error:  # as in `download`
        raise _error(name, target, error) from error
    if not (folder / "config.json").is_file():
        fix = "give a repository with safetensors, or a GGUF file"
        raise ConfigError(f"{target} has no config.json", where=name, fix=fix)
    return folder


def _refuse_silence(name: str, target: str) -> None:
    """Raise HubUnreachableError if the hub does not answer: `snapshot_download` (2.4) would wait without end."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception as error:  # of the client's transport, which is not the same in every version
        if "Timeout" in type(error).__name__:
            raise _error(name, target, error) from error
        # Otherwise the download fails at once, and says why.


def latest_commit(target: str) -> str:
    """Return the commit of a repository's main branch or pinned revision; blank if the hub does not answer."""
    from huggingface_hub import HfApi

    repository, _, revision = target.partition("@")
    try:
        return str(HfApi().model_info(repository, revision=revision or "main", timeout=5).sha or "")
    except Exception:  # as in `download`
        return ""


def progress_bar(on_progress: ProgressCallback) -> type[Any]:
    """Return a class for `snapshot_download(tqdm_class=...)` that reports megabytes instead of drawing a bar."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class ProgressBar(tqdm):
        """Several of them may count the same bytes, each in its own stage."""

        def update(self, n: float | None = 1) -> bool | None:
            moved: bool | None = super().update(n)
            # A bar that is switched off in the hub's settings has neither unit nor count.
            if not self.disable and self.unit == "B" and self.total:
                on_progress(int(self.n) // MEGABYTE, int(self.total) // MEGABYTE)
            return moved

        def display(self, *_: Any, **__: Any) -> None:
            """Draw nothing."""

        def close(self) -> None:
            """Leave no line behind."""
            self.disable = True

    return ProgressBar


def _error(name: str, target: str, error: Exception) -> ConfigError:
    kind = type(error).__name__
    if kind == "RepositoryNotFoundError" and name != target:
        what = f"the alias {name!r} stands for {target}, which the hub does not have or keeps private"
        return ConfigError(what, where=name, fix="give a repository as owner/name, or a folder")
    if kind in _CAUSES:
        return ConfigError(f"cannot get {target!r}: {_CAUSES[kind]}", where=name, fix=_FIX)
    what = f"cannot get {target!r}: the hub cannot be reached and it is not cached ({kind})"
    return HubUnreachableError(what, where=name, fix=_FIX)


def _commit(folder: Path, revision: str) -> str:
    """Return the cached commit of a branch or tag; blank if there is none."""
    if ".." in Path(revision).parts:
        return ""
    try:
        with (folder / "refs" / revision).open(encoding="ascii") as file:
            return file.read(100).strip()
    except (OSError, ValueError):
        return ""
