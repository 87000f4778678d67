"""What Ollama keeps on this machine: manifests that name layers, and the layers as files named by their hash.

A manifest lies in `manifests/<host>/<owner>/<name>/<tag>`; the layer with the weights is a GGUF. Manifests are foreign
text: a digest must be a digest, so that no name leads out of the folder of blobs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_mlx.core.errors import ConfigError

PREFIX = "ollama:"
LIBRARY = "library"  # the owner that Ollama leaves out of a name
MOST_MANIFEST = 1 << 20  # bytes
MOST_LICENCE = 1 << 16
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MODEL, _LICENCE, _ADAPTER = "image.model", "image.license", "image.adapter"


@dataclass(frozen=True)
class Pulled:
    """One model of Ollama's: `trouble` says why it cannot be used here, and is blank where it can."""

    name: str
    file: Path | None
    digest: str
    licence: str
    trouble: str


def roots() -> list[Path]:
    """Where Ollama keeps models: `$OLLAMA_MODELS`, else this user's folder and that of its service."""
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return [Path(chosen).expanduser()]
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def pulled() -> Iterator[Pulled]:
    """Every model, by name."""
    seen = set()
    for root in roots():
        for manifest, parts in _manifests(root):
            if (name := _name(parts)) not in seen:
                seen.add(name)
                yield _read(name, root, manifest)


def find(typed: str) -> Pulled:
    """The model of a name as `ollama run` takes it: `llama3.2`, `llama3.2:1b`, `owner/name:tag`; raises ConfigError."""
    wanted = typed.removeprefix(PREFIX)
    wanted = wanted if ":" in wanted.rpartition("/")[2] else f"{wanted}:latest"
    for root in roots():
        for manifest, parts in _manifests(root):
            host, owner, name, tag = parts
            full = f"{owner}/{name}:{tag}"
            if wanted in (_name(parts).removeprefix(PREFIX), full, f"{host}/{full}"):
                return _read(_name(parts), root, manifest)
    fix = f"get it with `ollama pull {wanted.removesuffix(':latest')}`; `sdpo models list` shows what is here"
    raise ConfigError(f"Ollama has no model {wanted!r} here", where=typed, fix=fix)


def _manifests(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Files four levels down, with host, owner, name and tag."""
    home = root / "manifests"
    try:
        for path in sorted(home.glob("*/*/*/*")):
            if path.is_file() and not path.name.startswith("."):
                yield path, path.relative_to(home).parts
    except OSError:  # another user's folder
        return


def _name(parts: tuple[str, ...]) -> str:
    host, owner, name, tag = parts
    return f"{PREFIX}{name}:{tag}" if owner == LIBRARY else f"{PREFIX}{host}/{owner}/{name}:{tag}"


def _read(name: str, root: Path, manifest: Path) -> Pulled:
    try:
        layers = _layers(manifest)
        if any(kind.endswith(_ADAPTER) for kind, _ in layers):
            return Pulled(name, None, "", "", "a LoRA of Ollama's own lies on top of it; use the model below it")
        digest = next((digest for kind, digest in layers if kind.endswith(_MODEL)), "")
        if not digest:
            return Pulled(name, None, "", "", "no GGUF in it: it runs elsewhere, or is kept in another format")
        file = _blob(root, digest)
        licences = [_first_line(_blob(root, digest)) for kind, digest in layers if kind.endswith(_LICENCE)]
    except ValueError as error:
        return Pulled(name, None, "", "", f"its manifest is refused: {error}")
    missing = "" if file.is_file() else f"its weights are gone; `ollama pull {name.removeprefix(PREFIX)}` gets them"
    return Pulled(name, file, digest.partition(":")[2], next(filter(None, licences), ""), missing)


def _layers(manifest: Path) -> list[tuple[str, str]]:
    """Kind and digest of each layer; ValueError where the manifest is none."""
    try:
        with manifest.open("rb") as file:
            content = file.read(MOST_MANIFEST + 1)
        found: Any = json.loads(content) if len(content) <= MOST_MANIFEST else None
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError("it cannot be read as JSON") from error
    layers = found.get("layers") if isinstance(found, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise ValueError("it lists no layers" if len(content) <= MOST_MANIFEST else "it is larger than any manifest")
    return [(str(layer.get("mediaType", "")), str(layer.get("digest", ""))) for layer in layers]


def _blob(root: Path, digest: str) -> Path:
    if not _DIGEST.fullmatch(digest):
        raise ValueError("a layer's digest is no SHA-256")
    return root / "blobs" / digest.replace(":", "-")


def _first_line(file: Path) -> str:
    try:
        with file.open("rb") as content:
            text = content.read(MOST_LICENCE).decode("utf-8", errors="replace")
    except OSError:
        return ""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
