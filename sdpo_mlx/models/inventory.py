"""Which models lie on this machine, wherever a person has them.

Only names, headers and small files are read: no weights, no hashes, nothing is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models import hub, license, lmstudio, ollama, resolve
from sdpo_mlx.models.gguf.header import read_header
from sdpo_mlx.models.safetensors_io import weight_files

MOST_BESIDE = 1_000  # entries of the working folder that are looked at
# Of those whose files don't say it: ours as the project, the other by its package.
LICENCES: Mapping[str, str] = {resolve.EMBEDDED: "mit", "smollm2": "apache-2.0"}


@dataclass(frozen=True)
class LocalModel:
    """One model: `name` is what `--model` takes, `path` where it lies (None: its weights are not here, `fetch` gets
    them), `size` of its weights in bytes, `trouble` why it cannot be used."""

    name: str
    source: resolve.Source
    target: str
    path: Path | None = None
    size: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    quantisation: str = ""
    licence: str = ""
    revision: str = ""
    trouble: str = ""
    fetch: str = ""

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's part of the configuration."""
        part = self.config.get("text_config")
        return part if isinstance(part, Mapping) else self.config


def items() -> Iterator[LocalModel]:
    """Every model that is found, our own names first."""
    for name in (resolve.EMBEDDED, *resolve.FETCHED, *resolve.ALIASES):
        yield item(name)
    fetched = {resolve.fetched_folder(name) for name in resolve.FETCHED}
    for folder in [path for path in resolve.local_models() if path not in fetched] + _beside():
        yield _folder(str(folder), "folder", str(folder), folder)
    for found in hub.snapshots():
        yield from _snapshots(found)
    for kept in lmstudio.kept():
        yield _kept(kept)
    for each in ollama.pulled():
        yield _pulled(each)


def item(name: str) -> LocalModel:
    """What is known of one model by its name; raises ConfigError where the name means nothing."""
    source, target = resolve.meaning(name)
    if source == "ollama":
        return _pulled(ollama.find(name))
    if source == "lmstudio":
        return _kept(lmstudio.find(name))
    if source == "gguf":
        return _gguf(name, source, Path(target))
    if source == "hub":
        return _hub(name, target)
    if source == "fetched" and not (Path(target) / "config.json").is_file():
        config = resolve.shipped_configuration(name)
        terms, fetch, kind = LICENCES.get(name, ""), f"sdpo models fetch {name}", _quantisation(config)
        return LocalModel(name, source, target, config=config, quantisation=kind, licence=terms, fetch=fetch)
    return _folder(name, source, target, Path(target))


def _hub(name: str, target: str) -> LocalModel:
    repository, _, wanted = target.partition("@")
    found = hub.snapshot(repository, wanted or "main")
    fetch = f"sdpo models fetch {name}"
    if found is not None and list(found.path.glob("*.safetensors")):
        return _folder(name, "hub", target, found.path, found.commit)
    if found is not None and (files := sorted(found.path.glob("*.gguf"))):
        trouble = f"the repository holds GGUF files; name one of them, as {files[0]}"
        return LocalModel(name, "hub", target, found.path, revision=found.commit, trouble=trouble)
    config: Mapping[str, Any] = resolve.shipped_configuration(target)
    return LocalModel(name, "hub", target, config=config, quantisation=_quantisation(config), fetch=fetch)


def _snapshots(found: hub.Snapshot) -> Iterator[LocalModel]:
    name = found.repository if found.current else f"{found.repository}@{found.commit}"
    files = [] if (found.path / "config.json").is_file() else sorted(found.path.glob("*.gguf"))
    for file in files:
        yield _gguf(str(file), "gguf", file)
    if not files and resolve.is_repository(name) and (found.path / "config.json").is_file():
        yield _folder(name, "hub", name, found.path, found.commit)


def _kept(kept: lmstudio.Kept) -> LocalModel:
    if kept.path.is_dir():
        return _folder(kept.name, "lmstudio", str(kept.path), kept.path)
    return _gguf(kept.name, "lmstudio", kept.path)


def _pulled(found: ollama.Pulled) -> LocalModel:
    if found.file is None or found.trouble:
        fetch = f"ollama pull {found.name.removeprefix(ollama.PREFIX)}" if found.file is not None else ""
        return LocalModel(found.name, "ollama", str(found.file or ""), trouble=found.trouble, fetch=fetch)
    return _gguf(found.name, "ollama", found.file, found.digest, found.licence)


def _folder(name: str, source: resolve.Source, target: str, path: Path, revision: str = "") -> LocalModel:
    files = weight_files(path)
    try:
        resolve.check_folder(path)
        config: Mapping[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
        trouble = _missing_shard(path)
    except ConfigError as error:
        config, trouble = {}, error.what
    fetch = f"sdpo models fetch {name}" if source == "hub" and not files else ""
    size = sum(file.stat().st_size for file in files if file.exists())
    terms = LICENCES.get(name) or license.of_folder(path)
    told = {"licence": terms, "revision": revision, "trouble": trouble, "fetch": fetch}
    return LocalModel(name, source, target, path, size, config, _quantisation(config), **told)


def _missing_shard(path: Path) -> str:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return ""
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        gone = sorted(shard for shard in shards if not (path / shard).is_file())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its index of weights cannot be read"
    return f"{len(gone)} of {len(shards)} files of weights are missing" if gone else ""


def _gguf(name: str, source: resolve.Source, file: Path, digest: str = "", terms: str = "") -> LocalModel:
    try:
        header = read_header(file)
        size = file.stat().st_size
    except (ConfigError, OSError) as error:
        trouble = error.what if isinstance(error, ConfigError) else "cannot be read"
        return LocalModel(name, source, str(file), file, revision=digest, licence=license.shown(terms), trouble=trouble)
    told = {"revision": digest, "licence": license.shown(header.licence or terms), "trouble": header.trouble()}
    return LocalModel(name, source, str(file), file, size, header.config(), header.quantisation, **told)


def _quantisation(config: Mapping[str, Any]) -> str:
    own, foreign = config.get("quantization"), config.get("quantization_config")
    if isinstance(own, Mapping) and "bits" in own:
        return f"{own['bits']}-bit"
    if isinstance(foreign, Mapping):
        return str(foreign.get("quant_method") or "quantised")
    return str(config.get("torch_dtype") or config.get("dtype") or "")


def _beside() -> list[Path]:
    """Model folders in the working folder, where `mlx_lm.convert` and `sdpo export` put them."""
    found = []
    try:
        for count, path in enumerate(Path.cwd().iterdir()):
            if count >= MOST_BESIDE:
                break
            if (path / "config.json").is_file() and weight_files(path):
                found.append(path)
    except OSError:
        return []
    return sorted(found)
