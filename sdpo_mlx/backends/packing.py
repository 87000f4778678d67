"""Which sequences are forwarded together: shared prompts once, the rest in padded rows under a token budget.

Pure numpy. However sequences are packed, the hidden states that come back are the same (causal attention,
right padding), so neither the budget nor the padding changes a gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sdpo_mlx.types import IntArray

Member = tuple[int, IntArray, IntArray]  # index of the sequence, its prompt, its response


@dataclass(frozen=True)
class Unit:
    """One forward pass: a prefix shared by all rows (or none), right-padded rows, and what to read.

    `take_R` holds flat positions in the (N, T) rows whose hidden states predict the response tokens,
    response after response in the order of `members`; `counts` are the lengths of the responses.
    """

    prefix_P: IntArray | None
    rows_NT: IntArray
    take_R: IntArray
    members: tuple[int, ...]
    counts: tuple[int, ...]


def pack(
    prompts: Sequence[IntArray],
    responses: Sequence[IntArray],
    budget: int,
    own: Sequence[int] | None = None,
    *,
    share: bool = True,
) -> list[Unit]:
    """Units that together cover every (prompt, response) once, each at most `budget` tokens where it can be.

    `own` are the places that are to be covered, where another rank covers the rest. Without `share` every row
    holds its whole prompt.
    """
    groups: dict[bytes, list[Member]] = defaultdict(list)
    for index in range(len(prompts)) if own is None else own:
        prompt, response = prompts[index], responses[index]
        groups[prompt.tobytes()].append((index, prompt, response))
    units: list[Unit] = []
    alone: list[Member] = []
    for group in groups.values():
        if not share or len(group) == 1 or group[0][1].size == 1:
            alone.extend(group)
            continue
        prefix = group[0][1][:-1]
        parts = _within(group, budget - prefix.size, lambda member: member[2].size)
        units.extend(_unit(prefix, [(i, p[-1:], r) for i, p, r in part]) for part in parts)
    parts = _within(alone, budget, lambda member: member[1].size + member[2].size - 1)
    units.extend(_unit(None, part) for part in parts)
    return units


def _within(members: list[Member], budget: int, length: Callable[[Member], int]) -> Iterator[list[Member]]:
    """Cut into parts of similar length whose padded size fits; a part holds at least one member."""
    part: list[Member] = []
    for member in sorted(members, key=lambda m: (-length(m), m[0])):
        if part and (len(part) + 1) * length(part[0]) > budget:
            yield part
            part = []
        part.append(member)
    if part:
        yield part


def _unit(prefix: IntArray | None, part: list[Member]) -> Unit:
    rows = [np.concatenate([prompt, response[:-1]]) for _, prompt, response in part]
    width = max(row.size for row in rows)
    padded = np.zeros((len(rows), width), dtype=np.int32)
    take = []
    for n, (row, (_, prompt, response)) in enumerate(zip(rows, part, strict=True)):
        padded[n, : row.size] = row
        first = n * width + prompt.size - 1
        take.append(np.arange(first, first + response.size, dtype=np.int32))
    return Unit(
        prefix_P=prefix,
        rows_NT=padded,
        take_R=np.concatenate(take),
        members=tuple(index for index, _, _ in part),
        counts=tuple(response.size for _, _, response in part),
    )
