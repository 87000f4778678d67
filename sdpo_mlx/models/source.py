"""What the sources of models have in common: how a name is matched, and where the files of a model are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SourceKind = Literal["embedded", "folder", "fetched", "hub", "lmstudio", "ollama", "gguf"]


@dataclass(frozen=True)
class Located:
    """A model before anything in it is opened: `name` is what `--model` takes.

    `path` is a folder or a GGUF file, None if the weights are not on this machine; then `fetch` is the command
    that downloads them. `trouble` says why the model cannot be used. `revision` is the hub's commit, or the SHA-256
    that Ollama has on record.
    """

    name: str
    source: SourceKind
    target: str
    path: Path | None = None
    revision: str = ""
    license: str = ""
    trouble: str = ""
    fetch: str = ""


@dataclass(frozen=True)
class Source:
    """One kind of place where models come from.

    `match` returns what a name stands for (a folder, file or repository), None for a name of another source; it opens
    nothing. `locate` takes name and target and may raise ConfigError. `local` yields what is on this machine besides
    the known names.
    """

    kind: SourceKind
    match: Callable[[str], str | None]
    locate: Callable[[str, str], Located]
    local: Callable[[], Iterator[Located]] = lambda: iter(())
