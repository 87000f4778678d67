"""Convert a GGUF file to a safetensors folder that mlx-lm and transformers load, and cache the result.

The file is memory-mapped: each tensor is dequantized in pieces of at most 64 MB, which are written at once.
Changes of the converter to GGUF are reversed: Llama's permuted query and key rows, Gemma's norms + 1.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from sdpo_mlx.core import git_lfs
from sdpo_mlx.core.errors import ConfigError, SdpoError, StorageError
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.core.storage import cache_home, file_digest, trouble
from sdpo_mlx.models.gguf.config import architecture, model_config, token_ids
from sdpo_mlx.models.gguf.header import read_header
from sdpo_mlx.models.gguf.tokenizer import write_tokenizer
from sdpo_mlx.models.safetensors_io import Dtype, Stored, write_weights

Values = npt.NDArray[np.float32]

_KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
_PLAIN: Mapping[str, Dtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PIECE = 1 << 24  # values dequantized at once: 64 MB as float32
_SMALL = 1_000_000_000  # up to this size quantized weights are stored exactly, in float32
MAX_ENTRIES = 8_000_000  # of one array in the header; merges of the longest vocabularies are under a million
_AGAIN = "get the file again; its download may have been cut short"
# Modules of a decoder's blocks by Hugging Face name: those of every architecture, and those of some.
_BLOCK = (
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
)
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_GEMMA_NORMS = (*_QK_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_MORE = {"qwen3": _QK_NORMS, "gemma3_text": _GEMMA_NORMS}  # by model type


@dataclass(frozen=True)
class Packed:
    """One tensor as stored in the file: `data` has a row of bytes or numbers for each row of `shape`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]


def cached_import(file: Path, expected: str = "", doing: StartTask = no_tasks) -> tuple[Path, str]:
    """Return the folder of a GGUF's import, made if it is not in the cache yet, and the file's SHA-256.

    `expected` is the hash that Ollama has on record. Raises ConfigError, StorageError.
    """
    if reason := read_header(file).trouble():
        raise ConfigError(reason, where=str(file), fix="use another file; `sdpo models list` says which can be used")
    doing(f"checking {file.name}")
    try:
        sha256 = file_digest(file)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(file), fix="check the file") from error
    if expected and sha256 != expected:
        raise ConfigError("the file does not match its hash", where=str(file), fix="get the model again")
    folder = cache_home() / "gguf" / sha256
    if not (folder / "config.json").is_file():
        try:
            import_gguf(file, folder, doing=doing)
        except (ConfigError, StorageError):
            if not (folder / "config.json").is_file():  # another process may have been quicker
                raise
    return folder, sha256


def import_gguf(path: Path, out: Path, *, dtype: Literal["auto"] | Dtype = "auto", doing: StartTask = no_tasks) -> Path:
    """Unpack a GGUF into the new folder `out` and return it.

    `auto` keeps F32, F16 and BF16; quantized weights become float32, which is exact, up to a billion weights,
    and float16 above (bfloat16 for Gemma, whose activations overflow float16).
    Raises ConfigError for a damaged or unsupported file and StorageError for a full disk; nothing is left then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("the output folder is not empty", where=str(out), fix="name a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise trouble(error, out.parent) from error
    try:
        _unpack(path, work, dtype, doing)
        work.chmod(0o755)
        work.replace(out)
    except OSError as error:
        raise trouble(error, out) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _unpack(path: Path, folder: Path, dtype: Literal["auto"] | Dtype, doing: StartTask) -> None:
    doing(f"reading {path.name}")
    metadata, tensors = read_gguf(path)
    arch = _at(path, architecture, metadata)
    freqs = tensors.pop("rope_freqs.weight", None)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = _at(path, model_config, metadata, shapes, None if freqs is None else np.concatenate([*_pieces(freqs)]))
    # A damaged layer count may be huge, and no layer is without a tensor.
    names = _module_names(arch, min(config["num_hidden_layers"], len(tensors)))
    stored = [_at(path, _stored, tensor, arch, config, names) for tensor in tensors.values()]
    _at(path, _check_names, [tensor.name for tensor in stored], config)
    chosen = _choose(tensors, arch) if dtype == "auto" else dtype
    _at(path, write_tokenizer, metadata, folder)
    _at(path, partial(write_weights, on_progress=doing(f"unpacking {path.name}, in MB")), folder, stored, chosen)
    ids = token_ids(metadata)
    _write_json(folder / "config.json", config | ids | {"torch_dtype": chosen})
    _write_json(folder / "generation_config.json", ids)
    doing(f"checking {path.name}")
    kinds = sorted({tensor.kind for tensor in tensors.values()})
    note = {"file": path.name, "sha256": file_digest(path), "name": metadata.get("general.name"), "kinds": kinds}
    _write_json(folder / "gguf_import.json", note | {"dtype": chosen})


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Packed]]:
    """Return metadata and memory-mapped tensors; raises ConfigError if the file is damaged."""
    from gguf import GGUFReader, GGUFValueType

    if git_lfs.is_pointer(path):
        raise ConfigError(f"{path.name} {git_lfs.WHAT}", where=str(path.parent), fix=git_lfs.FIX)

    class Reader(GGUFReader):
        """Raises EOFError at the end of the file; GGUFReader would go on with empty arrays."""

        def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> npt.NDArray[Any]:
            found = super()._get(offset, dtype, count, override_order)
            if found.size != int(count):
                raise EOFError("the file ends too early")
            return found

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            # GGUFReader reads an array's entries one by one up to its count: hours, if that is damaged.
            if raw_type == GGUFValueType.ARRAY and int(self._get(orig_offs + 4, np.uint64)[0]) > MAX_ENTRIES:
                raise EOFError("an array in the header is longer than any vocabulary")
            return super()._get_field_parts(orig_offs, raw_type)

    try:
        reader = Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = [
            Packed(t.name, t.tensor_type.name, tuple(int(n) for n in reversed(t.shape)), t.data) for t in reader.tensors
        ]
    except OSError as error:
        raise ConfigError(f"cannot read the GGUF: {error.strerror}", where=str(path), fix="check the path") from error
    except Exception as error:  # the reader checks little: a damaged file may raise anything
        raise ConfigError("the GGUF is damaged or not a GGUF", where=str(path), fix=_AGAIN) from error
    return metadata, {tensor.name: tensor for tensor in tensors}


def _at(path: Path, action: Callable[..., Any], *args: Any) -> Any:
    """Call `action`; errors about the file's content become one line that names the file."""
    try:
        return action(*args)
    except OSError:
        raise
    except SdpoError as error:
        raise ConfigError(error.what, where=str(path), fix=error.fix) from error
    except OverflowError as error:
        fix = "import it with --dtype float32, or get the file again"
        raise ConfigError(str(error), where=str(path), fix=fix) from error
    except Exception as error:
        cause = ascii(str(error))[1:161]  # a library's message about untrusted bytes, on one line
        raise ConfigError(f"the GGUF is damaged: {cause}", where=str(path), fix=_AGAIN) from error


def _choose(tensors: Mapping[str, Packed], arch: str) -> Dtype:
    kinds = {tensor.kind for tensor in tensors.values() if len(tensor.shape) > 1}
    if kinds <= set(_PLAIN):
        return "float32" if len(kinds) > 1 else _PLAIN[kinds.pop()]
    if sum(int(np.prod(tensor.shape)) for tensor in tensors.values()) <= _SMALL:
        return "float32"
    return "bfloat16" if arch == "gemma3" else "float16"


def _stored(tensor: Packed, arch: str, config: Mapping[str, Any], names: Mapping[str, str]) -> Stored:
    if tensor.kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise ConfigError(f"tensor {tensor.name!r} is stored as {tensor.kind}", fix=f"use a file with: {known}")
    stem, _, leaf = tensor.name.rpartition(".")
    if stem not in names or leaf not in ("weight", "bias"):
        fix = "use a plain text model of this architecture"
        raise ConfigError(f"the GGUF holds an unknown tensor {tensor.name!r}", fix=fix)
    name = f"{names[stem]}.{leaf}"
    order = None
    if arch == "llama" and (found := re.search(r"\.attn_([qk])\.", tensor.name)):
        heads = config["num_attention_heads" if found[1] == "q" else "num_key_value_heads"]
        # The row order before GGUF's converter interleaved the two halves of every head.
        order = np.arange(tensor.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    shift = 1.0 if arch == "gemma3" and name.endswith("norm.weight") else 0.0
    _check_shape(name, tensor.shape, config)
    return Stored(name, tensor.shape, partial(_pieces, tensor, order, shift))


def _module_names(arch: str, layers: int) -> dict[str, str]:
    """Return the Hugging Face name of each module by its GGUF name."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH[arch.upper()], layers)
    inner = (*_BLOCK, *_GEMMA_NORMS)
    modules = ["model.embed_tokens", "model.norm", "lm_head"]
    modules += [f"model.layers.{layer}.{part}" for layer in range(layers) for part in inner]
    return {found: module for module in modules if (found := names.get_name(module)) is not None}


def _pieces(tensor: Packed, order: npt.NDArray[np.intp] | None = None, shift: float = 0.0) -> Iterator[Values]:
    """Yield the tensor's values, some rows at a time."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = tensor.shape[0]
    step = max(1, _PIECE // max(1, int(np.prod(tensor.shape[1:])))) if len(tensor.shape) > 1 else rows
    for start in range(0, rows, step):
        chosen = slice(start, start + step) if order is None else order[start : start + step]
        data = tensor.data[chosen] if len(tensor.shape) > 1 or tensor.kind in ("F32", "F16") else tensor.data
        with np.errstate(all="ignore"):  # a damaged scale is refused by name when its value is written
            values = dequantize(np.ascontiguousarray(data), GGMLQuantizationType[tensor.kind])
        yield np.asarray(values, dtype=np.float32) - np.float32(shift) if shift else cast(Values, values)


def _check_shape(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> None:
    """Raise ConfigError for sizes that contradict the metadata, before anything is written."""
    hidden, wide, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    matrices = {
        "embed_tokens": (config["vocab_size"], hidden),
        "lm_head": (config["vocab_size"], hidden),
        "q_proj": (q, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, q),
        "gate_proj": (wide, hidden),
        "up_proj": (wide, hidden),
        "down_proj": (hidden, wide),
        "q_norm": (head,),
        "k_norm": (head,),
    }
    *_, module, leaf = name.split(".")
    expected = matrices.get(module, (hidden,))
    if shape != (expected if leaf == "weight" else expected[:1]):
        raise ConfigError(f"tensor {name!r} has the shape {shape}, not {expected}", fix=_AGAIN)


def _check_names(names: list[str], config: Mapping[str, Any]) -> None:
    inner = [f"{part}.weight" for part in (*_BLOCK, *_MORE.get(config["model_type"], ()))]
    if config["model_type"] == "qwen2":
        inner += [f"self_attn.{part}_proj.bias" for part in "qkv"]
    required = {f"model.layers.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in inner}
    missing = sorted((required | {"model.norm.weight"}) - set(names))
    if missing:
        raise ConfigError(f"the GGUF lacks {len(missing)} tensors, among them {missing[0]!r}", fix=_AGAIN)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
