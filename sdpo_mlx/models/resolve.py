"""What a model name means: an alias, a folder, or a repository on the hub, and whether its files are safe.

Safe means safetensors and JSON only. A folder with a pickle or with code of its own is refused before
anything in it is opened by a library; code from a model folder is never run.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.core.storage import cache_home
from sdpo_mlx.models import lmstudio, ollama
from sdpo_mlx.models.gguf import cache
from sdpo_mlx.models.gguf.header import read_header
from sdpo_mlx.models.safetensors_io import weight_files, weights_sha256

Source = Literal["embedded", "folder", "fetched", "hub", "lmstudio", "ollama", "gguf"]

# Hub repositories by alias. They stand for a repository, not for a commit: which commit of `main` was
# loaded is resolved at run time and kept in the run's manifest; `name@commit` pins it.
ALIASES: Mapping[str, str] = {
    "qwen": "mlx-community/Qwen3-4B-Instruct-2507-4bit",
    "qwen:tiny": "mlx-community/Qwen3-0.6B-4bit",
    "qwen:8b": "mlx-community/Qwen3-8B-4bit",
    "qwen3.5": "mlx-community/Qwen3.5-4B-MLX-4bit",
}
EMBEDDED = "tiny"
FETCHED = ("smollm2",)
ALLOWED = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "README.md")  # the card names the licence
_REFUSED = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".py",
    ".pyc",
    ".so",
    ".dylib",
    ".npy",
    ".npz",
    ".joblib",
)
_CODE_KEYS = ("auto_map", "model_file", "custom_pipelines")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine: `name` as typed, `target` what it became, `path` its folder.

    `revision` is the hub's commit, or the SHA-256 of the GGUF that it was made of, empty elsewhere;
    `weights_sha256` is the hash of the weights file, or of the lines `<hash>  <name>` where there are several.
    """

    name: str
    target: str
    path: Path
    source: Source
    revision: str
    weights_sha256: str

    def line(self) -> str:
        """What to print, so that nobody has to guess what an alias became."""
        commit = f" at {self.revision[:12]}" if self.revision else ""
        arrow = f" -> {self.target}" if self.target != self.name else ""
        return f"{self.name}{arrow}{commit} ({self.source}, weights {self.weights_sha256[:12]})"

    def record(self) -> dict[str, str]:
        """The same for a manifest or `--json`."""
        return {
            "name": self.name,
            "target": self.target,
            "path": str(self.path),
            "source": self.source,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
        }


def fetched_folder(alias: str) -> Path:
    """Where `sdpo models fetch` puts a model."""
    return cache_home() / "models" / alias


def resolve(name: str, doing: StartTask = no_tasks) -> ResolvedModel:
    """Find a model, downloading from the hub where the name says so, and check that its files are safe.

    Aliases win over folders of the same name (`./qwen` means the folder). Raises ConfigError.
    """
    source, target = meaning(name)
    if source == "fetched":
        return _fetched(name)
    if source == "hub":
        return _from_hub(name, target, doing)
    file = gguf_of(name)
    if file is None:
        found = lmstudio.find(name).path if source == "lmstudio" else Path(target)
        return opened(name, name if source == "embedded" else str(found), found, source)
    folder, sha256 = cache.imported(file, ollama.find(name).digest if source == "ollama" else "", doing)
    return ResolvedModel(name, str(file), folder, source, sha256, weights_sha256(folder))


def meaning(name: str) -> tuple[Source, str]:
    """What kind of thing a name is, and which folder, file or repository it stands for; nothing is opened or fetched.

    Raises ConfigError for a name that means nothing.
    """
    if name == EMBEDDED:
        return "embedded", str(files("sdpo_mlx") / "assets" / "tiny")
    if name in FETCHED:
        return "fetched", str(fetched_folder(name))
    if name.startswith(ollama.PREFIX):
        return "ollama", name
    if name.startswith(lmstudio.PREFIX):
        return "lmstudio", name
    target = ALIASES.get(name, name)
    place = None if name in ALIASES else _place(name)
    if place:
        if place.is_dir() or place.suffix.lower() == ".gguf":
            return "folder" if place.is_dir() else "gguf", str(place)
        fix = "name the folder that holds config.json and safetensors, or a GGUF"
        raise ConfigError("a model is a folder, this is a file", where=name, fix=fix)
    if not is_repository(target):
        raise ConfigError(f"unknown model {name!r}", fix=_suggest(name))
    return "hub", target


def is_repository(target: str) -> bool:
    """Whether this is a repository's name on the hub, with a commit or without."""
    whole = _REPOSITORY.fullmatch(target) and target.partition("@")[0].count("/") == 1
    return bool(whole) and not target.endswith((".gguf", ".safetensors"))


def gguf_of(name: str) -> Path | None:
    """The GGUF file that a name stands for, None for a model in another form; raises ConfigError where it is gone."""
    source, target = meaning(name)
    if source == "ollama":
        found = ollama.find(name)
        if found.file is None or found.trouble:
            raise ConfigError(found.trouble, where=name, fix="`sdpo models list` shows what can be used")
        return found.file
    if source == "lmstudio":
        path = lmstudio.find(name).path
        return None if path.is_dir() else path
    return Path(target) if source == "gguf" else None


def check_folder(folder: Path) -> None:
    """Refuse a model folder that holds pickles or code, or that lacks weights or configuration.

    Only names are looked at, and JSON is parsed; nothing is imported, nothing run. Raises ConfigError.
    """
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in _REFUSED and file.is_file():
            what = "code" if file.suffix.lower() in (".py", ".pyc", ".so", ".dylib") else "weights that may run code"
            raise ConfigError(f"refused: {file.name!r} holds {what}", where=str(folder), fix=_safe_fix(file))
    for name in ("config.json", "tokenizer_config.json"):
        held = [key for key in _CODE_KEYS if key in _read_json(folder / name, required=name == "config.json")]
        if held:
            fix = "use a model that needs no code of its own"
            raise ConfigError(f"refused: {name} asks for the model's own code ({held[0]})", where=str(folder), fix=fix)
    if not weight_files(folder):
        fix = "use a folder with safetensors, or `sdpo models import FILE.gguf`"
        raise ConfigError("no safetensors weights here", where=str(folder), fix=fix)


def local_models() -> list[Path]:
    """Folders of models that lie in the cache already."""
    root = cache_home() / "models"
    found = root.iterdir() if root.is_dir() else iter(())
    return sorted(folder for folder in found if not folder.name.startswith(".") and (folder / "config.json").is_file())


def configuration(name: str) -> Mapping[str, Any]:
    """A model's config.json, without its weights: of a folder, of the hub's cache or the hub, or shipped for aliases.

    Raises ConfigError.
    """
    if known := shipped_configuration(ALIASES.get(name, name)):
        return known
    source, target = meaning(name)
    if source != "hub":
        file = gguf_of(name)
        folder = lmstudio.find(name).path if source == "lmstudio" else Path(target)
        return _read_json(folder / "config.json", required=True) if file is None else read_header(file).config()
    from huggingface_hub import hf_hub_download

    repository, _, wanted = target.partition("@")
    try:
        return _read_json(Path(hf_hub_download(repository, "config.json", revision=wanted or "main")), required=True)
    except Exception as error:  # as in `_from_hub`
        raise ConfigError(f"cannot get {target!r}: {_hub_cause(error)}", where=name, fix=_HUB_FIX) from error


def shipped_configuration(target: str) -> Mapping[str, Any]:
    """The part of config.json that we know of an alias's repository by heart; empty for others."""
    known = json.loads((files("sdpo_mlx") / "assets" / "shapes.json").read_text(encoding="utf-8"))
    return dict(known.get(target, {}))


def tokenizer_folder(name: str) -> Path:
    """The folder of a model's tokenizer where it is here; else the embedded model's."""
    folder = _folder_of(name)
    return folder if (folder / "tokenizer.json").is_file() else _folder_of(EMBEDDED)


def _folder_of(name: str) -> Path:
    if name == EMBEDDED:
        return Path(str(files("sdpo_mlx") / "assets" / "tiny"))
    if name in FETCHED:
        return fetched_folder(name)
    return (None if name in ALIASES else _place(name)) or Path(name)


def _fetched(name: str) -> ResolvedModel:
    folder = fetched_folder(name)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model {name!r} is not on this machine yet", fix=f"run: sdpo models fetch {name}")
    return opened(name, str(folder), folder, "fetched")


def opened(name: str, target: str, folder: Path, source: Source, revision: str = "") -> ResolvedModel:
    """A model whose folder is known, checked and hashed; raises ConfigError."""
    check_folder(folder)
    return ResolvedModel(name, target, folder, source, revision, weights_sha256(folder))


def _from_hub(name: str, target: str, doing: StartTask) -> ResolvedModel:
    """Download (or find in the hub's own cache) a repository's safe files; the commit is the folder's name."""
    from huggingface_hub import snapshot_download

    from sdpo_mlx.models.hub_progress import telling

    repository, _, wanted = target.partition("@")
    try:
        bar = telling(doing(f"getting {target}, in MB"))
        folder = Path(
            snapshot_download(repository, revision=wanted or "main", allow_patterns=list(ALLOWED), tqdm_class=bar)
        )
    except Exception as error:  # the client lets its transport's own errors through as well
        raise ConfigError(f"cannot get {target!r}: {_hub_cause(error)}", where=name, fix=_HUB_FIX) from error
    return opened(name, target, folder, "hub", folder.name)


def hub_commit(target: str) -> str:
    """The commit at which a repository stands now (or its pinned revision), blank where the hub does not say."""
    from huggingface_hub import HfApi

    repository, _, wanted = target.partition("@")
    try:
        return str(HfApi().model_info(repository, revision=wanted or "main", timeout=5).sha or "")
    except Exception:  # as in `_from_hub`
        return ""


_HUB_FIX = "check the name and the network, or name a folder; `sdpo models list` shows what is here"


def _hub_cause(error: Exception) -> str:
    kinds = {
        "RepositoryNotFoundError": "no such repository, or it is private",
        "GatedRepoError": "the repository asks you to accept its terms first",
        "RevisionNotFoundError": "no such revision",
        "HFValidationError": "that is not a repository's name",
    }
    return kinds.get(type(error).__name__, f"the hub cannot be reached and it is not cached ({type(error).__name__})")


def _place(name: str) -> Path | None:
    """The absolute path of what lies on the disk under this name, if anything does."""
    try:
        path = Path(name).expanduser().resolve()
        return path if name and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, a NUL
        return None


def _suggest(name: str) -> str:
    known = [EMBEDDED, *FETCHED, *ALIASES]
    if name.startswith((".", "~", "/")) or name.count("/") > 1:
        return "there is no such folder; check the path"
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}; or give a folder or a repository as owner/name"


def _safe_fix(file: Path) -> str:
    return f"use a copy of the model without {file.name!r}: safetensors and JSON are all that is needed"


def _read_json(path: Path, *, required: bool) -> Mapping[str, Any]:
    if not path.is_file():
        if required:
            raise ConfigError(f"no {path.name} here", where=str(path.parent), fix="name a model's folder")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path.name} cannot be read", where=str(path), fix="get the model again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} is not a JSON object", where=str(path), fix="get the model again")
    return content
