"""From a model's name to its files: one table of sources, and the check that the files are safe.

Safe means safetensors and JSON only. A folder with a pickle or with code of its own is refused before
anything in it is opened by a library; code from a model folder is never run.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.core.storage import cache_home
from sdpo_mlx.models import aliases, hub, license, lmstudio, ollama
from sdpo_mlx.models.adapter_folder import check_pointers, is_adapter
from sdpo_mlx.models.gguf.header import read_header
from sdpo_mlx.models.gguf.reader import cached_import
from sdpo_mlx.models.safetensors_io import weight_files, weights_sha256
from sdpo_mlx.models.source import Located, Source, SourceKind

ALIASES: Mapping[str, str] = {name: alias.mlx for name, alias in aliases.TABLE.items()}  # repositories on MLX
EMBEDDED = "tiny"
_ASSETS = Path(str(files("sdpo_mlx"))) / "assets"
FETCHED: Mapping[str, str] = {"smollm2": "apache-2.0"}  # models of `sdpo models fetch` that no hub serves: license
ORIGINALS: Mapping[str, str] = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # what those were made of
CODE = (".py", ".pyc", ".so", ".dylib")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")
_CODE_KEYS = ("auto_map", "model_file", "custom_pipelines")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine: `name` as typed, `target` what it stands for, `path` its folder.

    `revision` is the hub's commit, or the SHA-256 of the GGUF that it was made of, otherwise empty;
    `weights_sha256` is the hash of the weights file, or of the lines `<hash>  <name>` if there are several.
    """

    name: str
    target: str
    path: Path
    source: SourceKind
    revision: str
    weights_sha256: str

    def line(self) -> str:
        """Return the line to print: what the name stands for, the commit and the hash."""
        commit = f" at {self.revision[:12]}" if self.revision else ""
        arrow = f" -> {self.target}" if self.target != self.name else ""
        return f"{self.name}{arrow}{commit} ({self.source}, weights {self.weights_sha256[:12]})"

    def record(self) -> dict[str, str]:
        """Return the fields for a manifest or `--json`."""
        return {**vars(self), "path": str(self.path)}


def resolve(name: str, doing: StartTask = no_tasks, *, backend: str = "auto") -> ResolvedModel:
    """Find a model, downloading it if it is on the hub, and check that its files are safe.

    Aliases win over folders of the same name (`./qwen` means the folder), and stand for a repository that the backend
    can read. Raises ConfigError.
    """
    source, target = meaning(name, backend)
    if source == "hub":
        folder = hub.download(name, target, doing)
        return opened(name, target, folder, source, folder.name)
    found = locate(name, backend)
    path = _usable(found)
    if path.is_dir():
        return opened(name, name if source == "embedded" else found.target, path, source)
    folder, sha256 = cached_import(path, found.revision, doing)
    return ResolvedModel(name, str(path), folder, source, sha256, weights_sha256(folder))


def original(model: ResolvedModel) -> str:
    """Return the hub repository that transformers loads these weights from, before quantization; blank if unknown."""
    if model.name in aliases.TABLE:
        return aliases.TABLE[model.name].torch
    if model.name in ORIGINALS:
        return ORIGINALS[model.name]
    if "quantization" in _read_json(model.path / "config.json", required=True):
        named = license.base_model(model.path)
        return named if _REPOSITORY.fullmatch(named) else ""
    return model.target.partition("@")[0] if model.source == "hub" else ""


def meaning(name: str, backend: str = "auto") -> tuple[SourceKind, str]:
    """Return the kind of a name, and which folder, file or repository it stands for; opens and fetches nothing.

    Raises ConfigError for an unknown name.
    """
    if name in ALIASES:
        return "hub", aliases.repository(name, backend)
    for source in SOURCES:
        if (target := source.match(name)) is not None:
            return source.kind, target
    if _on_disk(name):
        fix = "name the folder that holds config.json and safetensors, or a GGUF"
        raise ConfigError("a model is a folder, this is a file", where=name, fix=fix)
    if name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise ConfigError(f"unknown model {name!r}", fix="there is no such folder; check the path")
    known = [EMBEDDED, *FETCHED, *ALIASES]
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    families = ", ".join(each for each in known if ":" not in each)
    fix = f"{hint}known: {families} (sizes: `sdpo models list`); or give a folder or a repository as owner/name"
    raise ConfigError(f"unknown model {name!r}", fix=fix)


def locate(name: str, backend: str = "auto") -> Located:
    """Return where a model's files are, without downloading; raises ConfigError for an unknown name."""
    kind, target = meaning(name, backend)
    return next(source for source in SOURCES if source.kind == kind).locate(name, target)


def configuration(name: str, backend: str = "auto") -> Mapping[str, Any]:
    """Return a model's dimensions: what is shipped for known repositories, otherwise its config.json.

    Raises ConfigError.
    """
    return shipped_configuration(aliases.repository(name, backend)) or own_configuration(name, backend)


def planned_configuration(name: str, backend: str = "auto") -> Mapping[str, Any]:
    """Return a model's dimensions for a plan; on torch those that are shipped for an alias, without its quantization.

    Raises ConfigError.
    """
    return shipped_dimensions(name, backend) or own_configuration(name, backend)


def shipped_dimensions(name: str, backend: str = "auto") -> Mapping[str, Any]:
    """Return the dimensions that are shipped for a known name, as `planned_configuration`; empty for others."""
    if backend == "torch" and name in ALIASES and (shipped := shipped_configuration(ALIASES[name])):
        return {key: value for key, value in shipped.items() if key != "quantization"}
    return shipped_configuration(aliases.repository(name, backend))


def own_configuration(name: str, backend: str = "auto") -> Mapping[str, Any]:
    """Return a model's config.json without its weights, or the header of a GGUF; raises ConfigError."""
    folder = configuration_folder(name, backend)
    if folder is not None:
        return _read_json(folder / "config.json", required=True)
    header = read_header(_usable(locate(name, backend)))
    if trouble := header.trouble():
        raise ConfigError(trouble, where=name, fix="`sdpo models list` shows what can be used")
    return header.config()


def configuration_folder(name: str, backend: str = "auto") -> Path | None:
    """Return the folder of a model's config.json, None for a GGUF; of the hub, its configuration is downloaded.

    Raises ConfigError.
    """
    source, target = meaning(name, backend)
    path = hub.configuration_folder(name, target) if source == "hub" else _usable(locate(name, backend))
    return path if path.is_dir() else None


def shipped_configuration(target: str) -> Mapping[str, Any]:
    """Return the part of config.json that is shipped for a known repository; empty for others."""
    known = json.loads((_ASSETS / "shapes.json").read_text(encoding="utf-8"))
    return dict(known.get(target, {}))


def tokenizer_folder(name: str, backend: str = "auto") -> Path:
    """Return the folder of a model's tokenizer if it is on this machine, otherwise the embedded model's."""
    path = locate(name, backend).path
    return path if path is not None and (path / "tokenizer.json").is_file() else _ASSETS / "tiny"


def opened(name: str, target: str, folder: Path, source: SourceKind, revision: str = "") -> ResolvedModel:
    """Check and hash a model folder; raises ConfigError."""
    check_folder(folder)
    return ResolvedModel(name, target, folder, source, revision, weights_sha256(folder))


def check_folder(folder: Path) -> None:
    """Refuse a model folder that holds pickles or code, or that lacks weights or configuration.

    Only names are looked at, and JSON is parsed; nothing is imported, nothing run. Raises ConfigError.
    """
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in CODE + PICKLES and file.is_file():
            what = "code" if file.suffix.lower() in CODE else "weights that may run code"
            fix = f"use a copy of the model without {file.name!r}: only safetensors and JSON are needed"
            raise ConfigError(f"refused: {file.name!r} holds {what}", where=str(folder), fix=fix)
    refuse_code_in(folder)
    if not weight_files(folder):
        fix = "use a folder with safetensors, or `sdpo models import FILE.gguf`"
        raise ConfigError("no safetensors weights here", where=str(folder), fix=fix)


def refuse_code_in(folder: Path) -> None:
    """Raise ConfigError if config.json is missing, or if it or tokenizer_config.json asks for the model's own code.

    Also if the folder's files are pointers of git-LFS.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if held := [key for key in _CODE_KEYS if key in _read_json(folder / name, required=name == "config.json")]:
            fix = "use a model that needs no custom code"
            raise ConfigError(f"refused: {name} asks for the model's own code ({held[0]})", where=str(folder), fix=fix)


def fetched_folder(name: str) -> Path:
    """Return where `sdpo models fetch` puts a model that no hub serves."""
    return cache_home() / "models" / name


def cached_folders() -> list[Path]:
    """Return the folders of fetched models and imported GGUFs."""
    root = cache_home() / "models"
    found = root.iterdir() if root.is_dir() else iter(())
    return sorted(folder for folder in found if not folder.name.startswith(".") and (folder / "config.json").is_file())


def _usable(found: Located) -> Path:
    """Return the path of a model that is on this machine; raises ConfigError otherwise."""
    if found.trouble:
        raise ConfigError(found.trouble, where=found.name, fix="`sdpo models list` shows what can be used")
    if found.path is None:
        raise ConfigError(f"model {found.name!r} is not on this machine yet", fix=f"run: {found.fetch}")
    return found.path


# ---- sources


def _on_disk(name: str) -> Path | None:
    """Return the absolute path of the file or folder of this name, None if there is none."""
    try:
        path = Path(name).expanduser().resolve()
        return path if name and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, a NUL
        return None


def _is_repository(name: str) -> bool:
    """Whether this is `owner/name` or `owner/name@revision`."""
    whole = _REPOSITORY.fullmatch(name) and name.partition("@")[0].count("/") == 1
    return bool(whole) and not name.endswith((".gguf", ".safetensors"))


def _match_hub(name: str) -> str | None:
    return name if _is_repository(name) and not _on_disk(name) else None


def _match_path(fits: Callable[[Path], bool]) -> Callable[[str], str | None]:
    return lambda name: str(path) if (path := _on_disk(name)) and fits(path) else None


def _at(kind: SourceKind, terms: str = "") -> Callable[[str, str], Located]:
    return lambda name, target: Located(name, kind, target, Path(target), license=terms)


def _fetched(name: str, target: str) -> Located:
    here = (Path(target) / "config.json").is_file()
    fetch = "" if here else f"sdpo models fetch {name}"
    return Located(name, "fetched", target, Path(target) if here else None, license=FETCHED[name], fetch=fetch)


def _hub(name: str, target: str) -> Located:
    found = hub.snapshot(target)
    terms = aliases.TABLE[name].license if name in ALIASES else ""
    if found is not None and weight_files(found.path):
        return Located(name, "hub", target, found.path, found.commit, license=terms)
    if found is not None and (ggufs := sorted(found.path.glob("*.gguf"))):
        trouble = f"the repository holds GGUF files; name one of them, as {ggufs[0]}"
        return Located(name, "hub", target, found.path, found.commit, trouble=trouble)
    return Located(name, "hub", target, license=terms, fetch=f"sdpo models fetch {name}")


def _cached_hub() -> Iterator[Located]:
    for found in hub.snapshots():
        name = found.repository if found.current else f"{found.repository}@{found.commit}"
        if not (found.path / "config.json").is_file():
            yield from (Located(str(file), "gguf", str(file), file) for file in sorted(found.path.glob("*.gguf")))
        elif _is_repository(name):
            fetch = "" if weight_files(found.path) else f"sdpo models fetch {name}"
            yield Located(name, "hub", name, found.path, found.commit, fetch=fetch)


# In the order in which names are matched and models are listed.
SOURCES = (
    Source("embedded", lambda name: str(_ASSETS / "tiny") if name == EMBEDDED else None, _at("embedded", "mit")),
    Source("fetched", lambda name: str(fetched_folder(name)) if name in FETCHED else None, _fetched),
    Source("hub", _match_hub, _hub, _cached_hub),
    lmstudio.SOURCE,
    ollama.SOURCE,
    Source(
        "folder",
        _match_path(Path.is_dir),
        _at("folder"),
        lambda: (
            Located(str(path), "folder", str(path), path) for path in cached_folders() if path.name not in FETCHED
        ),
    ),
    Source("gguf", _match_path(lambda path: path.suffix.lower() == ".gguf"), _at("gguf")),
)


def _read_json(path: Path, *, required: bool) -> Mapping[str, Any]:
    if not path.is_file():
        if required and is_adapter(path.parent):
            fix = "name its base model, and this folder with --adapter"
            raise ConfigError("this is an adapter, not a model", where=str(path.parent), fix=fix)
        if required:
            raise ConfigError(f"no {path.name} here", where=str(path.parent), fix="name a model's folder")
        return {}
    check_pointers(path.parent)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path.name} cannot be read", where=str(path), fix="get the model again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} is not a JSON object", where=str(path), fix="get the model again")
    return content
