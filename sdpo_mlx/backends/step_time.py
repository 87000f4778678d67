"""Estimates how long a step takes from its operations and the speed of a machine; pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from sdpo_mlx.backends.memory_plan import Workload
from sdpo_mlx.models.dimensions import ModelDims

PLATEAU = 5.3  # of a product with quantized weights from 8 rows on, in times of one row


class Speed(Protocol):
    """How fast a machine computes; all results are in seconds."""

    def prefill(self, shape: ModelDims, operations: float) -> float:
        """Operations of a forward pass over a prompt."""

    def teacher(self, shape: ModelDims, operations: float) -> float:
        """Operations of forward passes over rollouts after their prompts."""

    def learn(self, shape: ModelDims, operations: float) -> float:
        """Operations of a gradient."""

    def token(self, shape: ModelDims, rows: int, cache: float, width: int) -> float:
        """Decode one token of each row, with so many bytes of keys and values, and `width` bytes per number."""


@dataclass(frozen=True)
class Machine:
    """What a machine does at full load: products (FLOP/s) and reading of weights (bytes/s).

    `metal` is whether it multiplies few rows with quantized weights as slowly as Apple's GPU (`quantized_rows`).
    """

    flops: float
    bandwidth: float
    metal: bool = False

    def prefill(self, _: ModelDims, operations: float) -> float:
        """See `Speed.prefill`."""
        return operations / self.flops

    teacher = learn = prefill

    def token(self, shape: ModelDims, rows: int, cache: float, width: int) -> float:
        """See `Speed.token`: reading all weights, keys and values, or multiplying them, whichever takes longer.

        On Metal several rows take longer with quantized weights.
        """
        slower = quantized_rows(rows) if shape.bits and self.metal else 1.0
        read = (slower * shape.weight_bytes(width) + cache) / self.bandwidth
        return max(read, 2 * rows * (shape.active_parameters + head(shape)) / self.flops)


@dataclass(frozen=True)
class Times:
    """Seconds of each phase of one step; grading runs beside generation and is not counted."""

    prefill: float
    decode: float
    teacher: float
    learn: float

    @property
    def total(self) -> float:
        """One whole step."""
        return self.prefill + self.decode + self.teacher + self.learn

    @property
    def dominant(self) -> str:
        """The longest phase."""
        return max(vars(self), key=lambda name: getattr(self, name))


def sampling(shape: ModelDims, work: Workload, machine: Speed, rollouts: tuple[int, int, int]) -> float:
    """Return the time to sample rollouts of full length: so many problems, rollouts of each, and tokens."""
    problems, group, answer = rollouts
    spent = times(shape, replace(work, problems=problems, group=group, answer=answer), machine)
    return spent.prefill + spent.decode


class Operations(NamedTuple):
    """Of the phases of one step, decoding apart."""

    prefill: float
    teacher: float
    learn: float


def times(shape: ModelDims, work: Workload, machine: Speed) -> Times:
    """Return the times of a step with rollouts of full length."""
    rows, count = work.rows, operations(shape, work)
    waves = math.ceil(work.problems * work.group / rows)
    cache = rows * shape.cached(work.prompt + work.answer / 2) * work.bytes
    return Times(
        prefill=machine.prefill(shape, count.prefill),
        decode=waves * work.answer * machine.token(shape, rows, cache, work.bytes),
        teacher=machine.teacher(shape, count.teacher),
        learn=machine.learn(shape, count.learn),
    )


def operations(shape: ModelDims, work: Workload) -> Operations:
    """Return the operations of a step: two per weight and token, and four more for a gradient.

    A block-wise backward pass runs each block forward once more.
    """
    answers = work.group * work.answer
    seen = _forwarded(work, work.context, work.context + answers)
    learned = _forwarded(work, work.prompt, work.prompt + answers)
    passes = 4 if work.keep else 6
    learn = passes / 2 * _forward(shape, learned, work.prompt + work.answer) + 2 * 4 * answers * head(shape)
    return Operations(
        prefill=work.problems * _forward(shape, work.prompt, work.prompt),
        teacher=work.problems * _forward(shape, seen, work.context),
        learn=work.problems * learn,
    )


def head(shape: ModelDims) -> int:
    """Return the weights of the output head."""
    return shape.vocabulary * shape.width


def quantized_rows(rows: int) -> float:
    """Return the time of a product of so many rows with quantized weights on Metal, in times of one row.

    Reported (mlx 3852, 4265): 6.1 at 8 and at 16 rows on an M3 Ultra, 4.5 at 10 and at 32 on an M4 Pro. In between a
    straight line to their mean at 8 rows, then flat: an estimate, and more so above 32 rows.
    """
    return 1.0 + (PLATEAU - 1.0) * min(max(rows, 1) - 1, 7) / 7


def _forwarded(work: Workload, prompt: int, whole: int) -> int:
    """Tokens of one group that are forwarded: its prompt again for each micro-batch, or for each rollout."""
    if not work.shares:
        return whole + (work.group - 1) * prompt
    return whole + (math.ceil(work.group / work.packed(prompt)) - 1) * prompt


def _forward(shape: ModelDims, tokens: int, seen: int) -> float:
    """Operations of a forward pass, attention to `seen` tokens on average included."""
    attention = 2 * sum(each.queries * min(seen, each.window or seen) for each in shape.layer if each.keys_values)
    return 2.0 * tokens * (shape.active_parameters + attention)
