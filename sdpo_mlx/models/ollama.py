"""Models of Ollama: manifests that name layers, and the layers as files named by their hash.

A manifest is `manifests/<host>/<owner>/<name>/<tag>`; the layer with the weights is a GGUF. Manifests are untrusted
text: a digest must be a digest, so that no name leads out of the folder of blobs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.source import Located, Source

PREFIX = "ollama:"
LIBRARY = "library"  # the owner that Ollama leaves out of a name
MAX_MANIFEST = 1 << 20  # bytes
MAX_LICENSE = 1 << 16
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MODEL, _LICENSE, _ADAPTER = "image.model", "image.license", "image.adapter"


def roots() -> list[Path]:
    """Return the folders where Ollama keeps models: `$OLLAMA_MODELS`, or this user's and the service's."""
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return [Path(chosen).expanduser()]
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def local() -> Iterator[Located]:
    """Yield every model, by name."""
    seen = set()
    for root, manifest, parts in _manifests():
        if (name := _name(parts)) not in seen:
            seen.add(name)
            yield _read(name, root, manifest)


def find(typed: str) -> Located:
    """Return the model of a name as `ollama run` takes it (`llama3.2`, `owner/name:tag`); raises ConfigError."""
    name = typed.removeprefix(PREFIX)
    name = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    for root, manifest, parts in _manifests():
        full = f"{parts[1]}/{parts[2]}:{parts[3]}"
        if name in (_name(parts).removeprefix(PREFIX), full, f"{parts[0]}/{full}"):
            return _read(_name(parts), root, manifest)
    fix = f"get it with `ollama pull {name.removesuffix(':latest')}`; `sdpo models list` shows what is here"
    raise ConfigError(f"Ollama has no model {name!r} here", where=typed, fix=fix)


def _manifests() -> Iterator[tuple[Path, Path, tuple[str, ...]]]:
    """Yield the manifests: root, file, and the parts host, owner, name and tag."""
    for root in roots():
        with suppress(OSError):  # another user's folder
            for path in sorted((root / "manifests").glob("*/*/*/*")):
                if path.is_file() and not path.name.startswith("."):
                    yield root, path, path.parts[-4:]


def _name(parts: tuple[str, ...]) -> str:
    host, owner, name, tag = parts
    return f"{PREFIX}{name}:{tag}" if owner == LIBRARY else f"{PREFIX}{host}/{owner}/{name}:{tag}"


def _read(name: str, root: Path, manifest: Path) -> Located:
    try:
        layers = _layers(manifest)
        if any(kind.endswith(_ADAPTER) for kind, _ in layers):
            raise ValueError("it has a LoRA of Ollama's on top; use the model below it")
        digest = next((digest for kind, digest in layers if kind.endswith(_MODEL)), "")
        if not digest:
            raise ValueError("it holds no GGUF: it runs elsewhere, or has another format")
        file = _blob(root, digest)
        licenses = [_blob(root, digest) for kind, digest in layers if kind.endswith(_LICENSE)]
    except ValueError as error:
        return Located(name, "ollama", "", trouble=str(error))
    if not file.is_file():
        pull = f"ollama pull {name.removeprefix(PREFIX)}"
        return Located(name, "ollama", str(file), trouble=f"its weights are missing; `{pull}` gets them", fetch=pull)
    lines: list[str] = []
    for text in licenses:
        with suppress(OSError), text.open("rb") as content:
            lines += content.read(MAX_LICENSE).decode("utf-8", errors="replace").splitlines()
    license = next((line.strip() for line in lines if line.strip()), "")
    return Located(name, "ollama", str(file), file, digest.partition(":")[2], license)


def _layers(manifest: Path) -> list[tuple[str, str]]:
    """Return kind and digest of each layer; raises ValueError for a damaged manifest."""
    try:
        with manifest.open("rb") as file:
            content = file.read(MAX_MANIFEST + 1)
        found: Any = json.loads(content) if len(content) <= MAX_MANIFEST else None
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError("its manifest cannot be read as JSON") from error
    layers = found.get("layers") if isinstance(found, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise ValueError("its manifest lists no layers, or is larger than any real one")
    return [(str(layer.get("mediaType", "")), str(layer.get("digest", ""))) for layer in layers]


def _blob(root: Path, digest: str) -> Path:
    if not _DIGEST.fullmatch(digest):
        raise ValueError("a digest in its manifest is no SHA-256")
    return root / "blobs" / digest.replace(":", "-")


SOURCE = Source("ollama", lambda name: name if name.startswith(PREFIX) else None, lambda name, _: find(name), local)
