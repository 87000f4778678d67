"""Read the header of a GGUF in milliseconds, for lists and plans, before any tensor is read.

Reading stops at the vocabulary, which is most of a header; a few keys after it are found by search. The result
is good enough for display and planning; the importer reads the whole file and does not use it.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_mlx.core import git_lfs
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.gguf.config import architecture

MAX_KEYS = 65_536
MAX_STRING = 1 << 20  # bytes
MAX_STRINGS = 10_000  # of an array before the vocabulary
SEARCHED = 24 << 20  # bytes after the vocabulary's start: more than any known header
_PLAIN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
IMPORTED = (*_PLAIN, "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")

_SCALARS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}  # key of config.json -> key in the header, after the architecture's name
_NAMED = re.compile(r"(?<![A-Z0-9])(IQ\d\w*|T?Q\d(?:_[0-9K])?(?:_[SML])?|BF16|F16|F32|MXFP4)(?![A-Z0-9])")


@dataclass(frozen=True)
class Header:
    """Metadata before the vocabulary; `quantization` is llama.cpp's name for the mixture of types, blank if unknown."""

    metadata: Mapping[str, Any]
    vocabulary: int
    tied: bool
    quantization: str

    @property
    def license(self) -> str:
        """Return the license that the file names; blank if it names none."""
        return str(self.metadata.get("general.license") or "")

    def config(self) -> dict[str, Any]:
        """Return the keys of the later `config.json` that the header has."""
        arch = str(self.metadata.get("general.architecture", ""))
        found = {ours: self.metadata.get(f"{arch}.{theirs}") for ours, theirs in _NUMBERS.items()}
        found |= {"vocab_size": self.vocabulary, "tie_word_embeddings": self.tied, "model_type": arch}
        return {name: value for name, value in found.items() if value is not None}

    def trouble(self) -> str:
        """Return why it cannot be imported, as far as the header shows; blank otherwise."""
        if self.metadata.get("split.count", 0) not in (0, 1):
            return "the GGUF is split into several files, which cannot be imported"
        try:
            architecture(self.metadata)
        except ConfigError as error:
            return error.what
        if self.quantization and self.quantization not in IMPORTED:
            return f"weights stored as {self.quantization} cannot be imported"
        return ""


def read_header(path: Path) -> Header:
    """The header of a GGUF; raises ConfigError where it is damaged or no GGUF."""
    fix = "get the file again; its download may have been cut short"
    if git_lfs.is_pointer(path):
        raise ConfigError(f"{path.name} {git_lfs.WHAT}", where=str(path.parent), fix=git_lfs.FIX)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read(content, path.name)
    except OSError as error:
        raise ConfigError(f"cannot read the GGUF: {error.strerror or error}", where=str(path), fix=fix) from error
    except (ValueError, struct.error) as error:  # an empty file cannot be mapped
        raise ConfigError("the GGUF is damaged or not a GGUF", where=str(path), fix=fix) from error


class _Walk:
    """A place in the header; struct.error or ValueError where it leads out of the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        size = self.number("<Q")
        if size > MAX_STRING or self.at + size > len(self.content):
            raise ValueError("a text is longer than the file or than any sane one")
        self.at += size
        return self.content[self.at - size : self.at].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        return self.number(_SCALARS[kind]) if kind in _SCALARS else self.array()

    def array(self) -> None:
        kind, count = self.number("<I"), self.number("<Q")
        if kind in _SCALARS:
            self.at += count * struct.calcsize(_SCALARS[kind])
        elif kind == _STRING and count <= MAX_STRINGS:
            for _ in range(count):
                self.text()
        else:
            raise ValueError("an unexpected array before the vocabulary")
        if self.at > len(self.content):
            raise ValueError("an array is longer than the file")


def _read(content: mmap.mmap, name: str) -> Header:
    from gguf import LlamaFileType

    walk = _Walk(content)
    if walk.number("<I") != int.from_bytes(b"GGUF", "little") or walk.number("<I") not in (2, 3):
        raise ValueError("not a GGUF of a known version")
    walk.number("<Q")
    metadata: dict[str, Any] = {}
    vocabulary = 0
    for _ in range(min(walk.number("<Q"), MAX_KEYS)):
        key, kind = walk.text(), walk.number("<I")
        if key == "tokenizer.ggml.tokens" and kind == _ARRAY:
            walk.number("<I")
            vocabulary = walk.number("<Q")
            break
        if kind not in _SCALARS and kind not in (_STRING, _ARRAY):
            raise ValueError("a value of an unknown kind")
        metadata[key] = walk.value(kind)
    rest = content[walk.at : walk.at + SEARCHED]
    arch = metadata.get("general.architecture")
    for key in ("general.file_type", *(f"{arch}.{name}" for name in _NUMBERS.values())):
        place = -1 if key in metadata else _named(rest, key)
        tail = rest[place + 8 + len(key) :][:8] if place >= 0 else b""
        if tail[:4] == struct.pack("<I", 4) and len(tail) == 8:  # a 32-bit number
            metadata[key] = int.from_bytes(tail[4:], "little")
    try:
        kind_of_file = LlamaFileType(metadata["general.file_type"]).name
        quantization = kind_of_file.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError):
        quantization = next(reversed(_NAMED.findall(name.upper())), "")
    return Header(metadata, vocabulary, _named(rest, "output.weight") < 0, quantization)


def _named(rest: bytes, name: str) -> int:
    return rest.find(struct.pack("<Q", len(name)) + name.encode())
