"""What ranks say to each other, as bytes: JSON for plain values, safetensors for arrays. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sdpo_mlx.types import DistillSample, Generation

Array = npt.NDArray[Any]
HEADER = 8  # bytes that say how long the JSON is
ARRAYS = ("student_ids", "teacher_ids", "rollout_logps_T")
SPANS = ("student_span", "teacher_span")
PLAIN = ("problem_id", "index", "distil_weight", "policy_weight", "advantage", "turn")


def encode(plain: Any, arrays: Mapping[str, Array] | None = None) -> bytes:
    """One message; numbers that are not finite survive."""
    from safetensors.numpy import save

    head = json.dumps(plain).encode()
    body = save({name: np.asarray(array, order="C") for name, array in (arrays or {}).items()})
    return len(head).to_bytes(HEADER, "little") + head + body


def decode(message: bytes) -> tuple[Any, dict[str, Array]]:
    """What `encode` was given."""
    from safetensors.numpy import load

    end = HEADER + int.from_bytes(message[:HEADER], "little")
    return json.loads(message[HEADER:end]), load(message[end:])


def of_samples(samples: Sequence[DistillSample]) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Samples as plain values and arrays."""
    rows = [{name: getattr(sample, name) for name in (*SPANS, *PLAIN)} for sample in samples]
    arrays = {f"{i}.{name}": getattr(sample, name) for i, sample in enumerate(samples) for name in ARRAYS}
    return rows, arrays


def to_samples(rows: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array]) -> list[DistillSample]:
    """What `of_samples` was given."""
    samples = []
    for i, row in enumerate(rows):
        fields: dict[str, Any] = {name: row[name] for name in PLAIN}
        fields |= {name: tuple(row[name]) for name in SPANS} | {name: arrays[f"{i}.{name}"] for name in ARRAYS}
        samples.append(DistillSample(**fields))
    return samples


def of_answers(answers: Sequence[tuple[int, int, Generation]]) -> tuple[list[list[Any]], dict[str, Array]]:
    """Answers with their places as plain values and arrays."""
    rows = [[at, n, answer.finish] for at, n, answer in answers]
    ids = {f"{i}.ids": answer.ids_T for i, (_, _, answer) in enumerate(answers)}
    logps = {f"{i}.logps": answer.logps_T for i, (_, _, answer) in enumerate(answers)}
    return rows, ids | logps


def to_answers(rows: Sequence[Sequence[Any]], arrays: Mapping[str, Array]) -> list[tuple[int, int, Generation]]:
    """What `of_answers` was given."""
    return [
        (at, n, Generation(arrays[f"{i}.ids"], arrays[f"{i}.logps"], finish)) for i, (at, n, finish) in enumerate(rows)
    ]
