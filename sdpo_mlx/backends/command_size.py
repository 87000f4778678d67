"""How much work a GPU gets at once: macOS ends a process whose commands keep the display waiting (mlx 3267).

Work is counted in operations of matrix products, two per weight and token; attention adds to them what the length of
the text asks for, and is not counted. MLX itself begins a new command buffer after 40 to 50 operations of its graph or
as many megabytes (`MLX_MAX_OPS_PER_BUFFER`, `MLX_MAX_MB_PER_BUFFER`), so that one evaluation is at least one buffer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sdpo_mlx.models.dimensions import ModelDims

UNBOUNDED = 2**31  # tokens
# Operations per token and weight.
FORWARD = 2
BACKWARD = 6  # a vjp runs its part forward first
RECOMPUTED = 8  # and once more where each layer runs again on the way back
HEAD = 10  # the student's head with its gradient, and at most two teachers' heads
LEAST = 32  # tokens: below this, reading the weights takes longer than the products

# Float32 TFLOP/s of the GPU of the first chip of each kind, as published for M1 (2.6, Pro 5.2, Max 10.4, Ultra 21);
# later ones are faster. What is planned is one second at that rate, an estimate: no limit of the watchdog is published,
# and no chip was measured.
TERAFLOPS: Mapping[str, float] = MappingProxyType({"": 2.6, "Pro": 5.2, "Max": 10.4, "Ultra": 21.0})
SECONDS = 1.0


def chip_class(name: str) -> str | None:
    """Return the class of an Apple chip by its name: `` for `Apple M3`, `Pro`, `Max` or `Ultra`; None for others."""
    found = re.search(r"Apple [MA]\d+(?: (Pro|Max|Ultra))?", name)
    return None if found is None else found[1] or ""


def evaluation_limit(setting: float | None, chip: str) -> float:
    """Return the operations that one evaluation may cover; infinite on a chip without a watchdog.

    `setting` is `memory.evaluation_gflop`, which counts on every device; `chip` the name that MLX or macOS reports.
    """
    if setting is not None:
        return setting * 1e9
    kind = chip_class(chip)
    return math.inf if kind is None else SECONDS * TERAFLOPS[kind] * 1e12


@dataclass(frozen=True)
class EvaluationSizes:
    """The tokens that one evaluation may cover, for a model that uses so many weights per token.

    `limit` are operations (`evaluation_limit`); `block` are the weights of one of its blocks, `whole` those of all,
    the head included. One text that is longer than `learning` is still learned from in one evaluation per block.
    """

    limit: float = math.inf
    block: float = 1.0
    whole: float = 1.0
    head: float = 1.0  # weights
    by_block: bool = True  # whether the model learns block by block

    @classmethod
    def of(cls, dims: ModelDims, limit: float, *, by_block: bool) -> EvaluationSizes:
        """Return the sizes for a model of these dimensions; an average block stands for all."""
        head = dims.vocabulary * dims.width
        block = dims.active_parameters / max(dims.layers, 1)
        return cls(limit, block, dims.active_parameters + head, head, by_block)

    @property
    def prefill(self) -> int:
        """Tokens of prompts, times rows, that run through the whole model at once."""
        return self._tokens(self.whole, FORWARD)

    @property
    def learning(self) -> int:
        """Tokens of a micro-batch: their way back through one block, or through all if it is not taken apart."""
        return self._tokens(self.block, BACKWARD) if self.by_block else self._tokens(self.whole, RECOMPUTED)

    @property
    def one_graph(self) -> int:
        """Tokens whose way forward and back through all blocks may be one evaluation (no gradient checkpointing)."""
        return self._tokens(self.whole, BACKWARD)

    @property
    def head_rows(self) -> int:
        """Response tokens whose logits are computed at once."""
        return self._tokens(self.head, HEAD)

    def _tokens(self, weights: float, operations: int) -> int:
        if math.isinf(self.limit):
            return UNBOUNDED
        return max(LEAST, int(self.limit / (operations * max(weights, 1.0))))


UNBOUNDED_SIZES = EvaluationSizes()
