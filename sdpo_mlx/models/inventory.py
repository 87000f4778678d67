"""List the models on this machine: those of sdpo, the hub's cache, LM Studio, Ollama and model folders.

Only names, headers and small files are read: no weights, no hashes, no library of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models import license, resolve
from sdpo_mlx.models.gguf.header import read_header
from sdpo_mlx.models.safetensors_io import weight_files
from sdpo_mlx.models.source import Located

MAX_ENTRIES = 1_000  # of the working directory that are looked at


@dataclass(frozen=True)
class LocalModel(Located):
    """A model with its configuration, its quantization and the bytes of its weights; a size of 0 is unknown."""

    size: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    quantization: str = ""

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's part of the configuration."""
        part = self.config.get("text_config")
        return part if isinstance(part, Mapping) else self.config


def items(backend: str = "auto") -> Iterator[LocalModel]:
    """Yield every model that is found, known names first; an alias stands for the backend's repository."""
    for name in (resolve.EMBEDDED, *resolve.FETCHED, *resolve.ALIASES):
        yield item(name, backend)
    for source in resolve.SOURCES:
        yield from map(_described, source.local())
    try:  # the working directory, where `mlx_lm.convert` and `sdpo export` put models
        paths = islice(Path.cwd().iterdir(), MAX_ENTRIES)
        folders = sorted(path for path in paths if (path / "config.json").is_file() and weight_files(path))
    except OSError:
        return
    for folder in folders:
        yield _described(resolve.locate(str(folder)))


def item(name: str, backend: str = "auto") -> LocalModel:
    """Return what is known of one model by its name; raises ConfigError for an unknown name."""
    return _described(resolve.locate(name, backend), backend)


def _described(found: Located, backend: str = "auto") -> LocalModel:
    model = LocalModel(**vars(found))
    if found.trouble:
        return model
    if found.path is None:
        config = resolve.shipped_dimensions(found.name, backend)
        return replace(model, config=config, quantization=_quantization(config))
    if not found.path.is_dir():
        model = replace(model, license=license.shown(model.license))
        try:
            header, size = read_header(found.path), found.path.stat().st_size
        except (ConfigError, OSError) as error:
            return replace(model, trouble=error.what if isinstance(error, ConfigError) else "cannot be read")
        model = replace(model, size=size, config=header.config(), quantization=header.quantization)
        return replace(model, license=license.shown(header.license) or model.license, trouble=header.trouble())
    try:
        resolve.check_folder(found.path)
        config = json.loads((found.path / "config.json").read_text(encoding="utf-8"))
        trouble = _missing_shard(found.path)
    except ConfigError as error:
        config, trouble = {}, error.what
    size = sum(file.stat().st_size for file in weight_files(found.path) if file.exists())
    terms = found.license or license.of_folder(found.path)
    kind = _quantization(config)
    return replace(model, size=size, config=config, quantization=kind, license=terms, trouble=trouble)


def _missing_shard(path: Path) -> str:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return ""
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        gone = sorted(shard for shard in shards if not (path / shard).is_file())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "the index of the weights cannot be read"
    return f"{len(gone)} of {len(shards)} files of weights are missing" if gone else ""


def _quantization(config: Mapping[str, Any]) -> str:
    own, foreign = config.get("quantization"), config.get("quantization_config")
    if isinstance(own, Mapping) and "bits" in own:
        return f"{own['bits']}-bit"
    if isinstance(foreign, Mapping):
        return str(foreign.get("quant_method") or "quantized")
    return str(config.get("torch_dtype") or config.get("dtype") or "")
