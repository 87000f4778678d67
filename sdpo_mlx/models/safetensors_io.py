"""Read and write safetensors files with numpy, bfloat16 included, which numpy and `safetensors.numpy` do not know.

Weights are written piece by piece, so that only a part of one tensor is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sdpo_mlx.core.progress import MEGABYTE, ProgressCallback, no_progress
from sdpo_mlx.core.storage import digest, file_digest

Dtype = Literal["float32", "float16", "bfloat16"]
_CODES: Mapping[str, tuple[str, int]] = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
_EXPONENT: Mapping[str, int] = {"float16": 0x7C00, "bfloat16": 0x7F80}
_SHARD_BYTES = 2 << 30
_MAX_HEADER = 100_000_000  # bytes; the format's own limit
_NUMPY: Mapping[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "C64": "<c8",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor to write: `pieces` yields float32 arrays whose values, in order, fill `shape`."""

    name: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[npt.NDArray[np.float32]]]

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))


def write_weights(
    folder: Path,
    tensors: Sequence[Stored],
    dtype: Dtype,
    shard_bytes: int = _SHARD_BYTES,
    on_progress: ProgressCallback = no_progress,
) -> None:
    """Write `model.safetensors`, or shards with an index if the total is larger than `shard_bytes`.

    Values are rounded to nearest even in `dtype`; raises OverflowError for one that does not fit. Reports megabytes.
    """
    width = _CODES[dtype][1]
    total = sum(tensor.size for tensor in tensors) * width
    progress = _Progress(on_progress, total)
    shards: list[list[Stored]] = [[]]
    used = 0
    for tensor in tensors:
        if shards[-1] and used + tensor.size * width > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.size * width
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0], dtype, progress)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard, dtype, progress)
        weight_map |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, by name, without adapters."""
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter"))


def read_arrays(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a safetensors file by name; bfloat16 becomes float32, which is exact.

    Raises ValueError for a damaged file, and for a type that numpy has no form of, such as float8.
    """
    from safetensors import SafetensorError, deserialize

    try:
        stored = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return {name: _array(name, entry) for name, entry in stored}


def _array(name: str, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    code, shape = entry["dtype"], entry["shape"]
    if code == "BF16":  # the upper halves of float32's bits
        halves = np.frombuffer(entry["data"], dtype="<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(shape)
    if code not in _NUMPY:
        raise ValueError(f"{name} is stored as {code}; convert the file to float32, float16 or bfloat16")
    return np.frombuffer(entry["data"], dtype=_NUMPY[code]).reshape(shape)


def read_headers(folder: Path) -> dict[str, Any]:
    """Return dtype, shape and offsets of every tensor of a model folder, without its weights.

    A file that is no safetensors file is left out: loading it fails with its own message.
    """
    found: dict[str, Any] = {}
    for path in weight_files(folder):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length)) if length <= _MAX_HEADER else {}
        except (OSError, ValueError):
            continue
        found |= {name: each for name, each in header.items() if isinstance(each, dict) and "shape" in each}
    return found


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of the weights file, or of the lines `<hash>  <name>` if there are several."""
    hashes = [(file.name, file_digest(file)) for file in weight_files(folder)]
    if len(hashes) == 1:
        return hashes[0][1]
    return digest("".join(f"{value}  {name}\n" for name, value in hashes).encode())


class _Progress:
    """Counts and reports the bytes written."""

    def __init__(self, on_progress: ProgressCallback, total: int) -> None:
        self.on_progress, self.total, self.done = on_progress, total, 0
        self.add(0)

    def add(self, count: int) -> None:
        self.done += count
        self.on_progress(self.done // MEGABYTE, self.total // MEGABYTE)


def _write_file(path: Path, tensors: Sequence[Stored], dtype: Dtype, progress: _Progress) -> None:
    code, width = _CODES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # required by transformers
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size * width
        header[tensor.name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = 0
            for piece in tensor.pieces():
                file.write(_encode(piece, dtype, tensor.name))
                written += piece.size
                progress.add(piece.size * width)
            if written != tensor.size:
                raise ValueError(f"{tensor.name}: {written} values instead of {tensor.size}")


def _encode(values: npt.NDArray[np.float32], dtype: Dtype, name: str) -> bytes:
    if not np.isfinite(values).all():
        raise OverflowError(f"{name} holds a value that is not finite")
    if dtype == "float32":
        return values.astype("<f4", copy=False).tobytes()
    if dtype == "bfloat16":  # numpy has none: the upper halves of the float32 bits, rounded to nearest even
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
        short: npt.NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    else:
        with np.errstate(over="ignore"):
            short = values.astype("<f2")
    if ((short.view(np.uint16) & _EXPONENT[dtype]) == _EXPONENT[dtype]).any():  # all bits set: infinite
        raise OverflowError(f"{name} holds a value too large for {dtype}")
    return short.tobytes()
