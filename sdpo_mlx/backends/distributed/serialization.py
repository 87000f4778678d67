"""Messages between ranks as bytes: JSON for plain values, safetensors for arrays. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sdpo_mlx.models.safetensors_io import read_arrays
from sdpo_mlx.types import DistillSample, Generation

Array = npt.NDArray[Any]
HEADER = 8  # bytes of the length of the JSON


def encode(plain: Any, arrays: Mapping[str, Array] | None = None) -> bytes:
    """One message; numbers that are not finite survive."""
    from safetensors.numpy import save

    head = json.dumps(plain).encode()
    body = save({name: np.asarray(array, order="C") for name, array in (arrays or {}).items()})
    return len(head).to_bytes(HEADER, "little") + head + body


def decode(message: bytes) -> tuple[Any, dict[str, Array]]:
    """What `encode` was given."""
    end = HEADER + int.from_bytes(message[:HEADER], "little")
    return json.loads(message[HEADER:end]), read_arrays(message[end:])


def encode_samples(samples: Sequence[DistillSample]) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Samples as plain values and arrays."""
    arrays = {f"{i}.{n}": v for i, s in enumerate(samples) for n, v in vars(s).items() if isinstance(v, np.ndarray)}
    return [{n: v for n, v in vars(s).items() if not isinstance(v, np.ndarray)} for s in samples], arrays


def decode_samples(rows: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array]) -> list[DistillSample]:
    """What `encode_samples` was given."""
    # JSON turned the spans into lists.
    fields: list[dict[str, Any]] = [{n: tuple(v) if isinstance(v, list) else v for n, v in row.items()} for row in rows]
    for key, array in arrays.items():
        i, _, name = key.partition(".")
        fields[int(i)][name] = array
    return [DistillSample(**each) for each in fields]


def encode_rollouts(rollouts: Sequence[tuple[int, int, Generation]]) -> tuple[list[list[Any]], dict[str, Array]]:
    """Rollouts with their places as plain values and arrays."""
    rows = [[at, n, rollout.finish] for at, n, rollout in rollouts]
    ids = {f"{i}.ids": rollout.ids_T for i, (_, _, rollout) in enumerate(rollouts)}
    logps = {f"{i}.logps": rollout.logps_T for i, (_, _, rollout) in enumerate(rollouts)}
    return rows, ids | logps


def decode_rollouts(rows: Sequence[Sequence[Any]], arrays: Mapping[str, Array]) -> list[tuple[int, int, Generation]]:
    """What `encode_rollouts` was given."""
    return [
        (at, n, Generation(arrays[f"{i}.ids"], arrays[f"{i}.logps"], finish)) for i, (at, n, finish) in enumerate(rows)
    ]
